"""Insertion and Deletion: the probability while the most salient pixels are inserted, or removed."""

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from quantus.helpers.enums import ScoreDirection
from torch import Tensor

from adapters.checks import positive_int

from ._blur import blurred
from ._curves import area, exchange_curve
from ._maps import is_constant
from ._metric import Options, TensorMetric
from ._outputs import Model
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets
from .removal_drop import Fill, filled


def insertion(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    blur_sigma: float | None = None,
    steps: int = 100,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """The area under the class's probability as pixels are inserted into the blurred image, most salient first.

    The horizontal axis is the fraction of pixels, 0 to 1; by the trapezoidal rule. Source: RISE; CA-Stream, table 1
    and MHEX, B.2 (there in percent). Higher is better; from 0 to 1. Ties are broken row by row.

    Args:
        model: Maps inputs to logits.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] and the inputs' other axes), the maps; channels are summed.
        blur_sigma: The blur's standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.
        steps: The number of steps in which all pixels are inserted.
        activation: What makes probabilities of the outputs: "softmax", "sigmoid", "identity" or a function of them.
        batch_size: Batch size for perturbed images.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if shapes do not match, or something is not finite.

    Example:
        >>> import torch
        >>> from quantus_metrics import deletion, insertion
        >>> model = lambda x: torch.stack([x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1)
        >>> image = torch.tensor([[[[100.0, 0.0], [0.0, 0.0]]]])
        >>> deletion(model, image, [0], image, steps=4)  # 1, then 1/2 as the first pixel is gone
        tensor([0.5625])
        >>> bool(insertion(model, image, [0], image, steps=4) > 0.9)
        True
    """
    metric = Insertion(blur_sigma, steps, activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size)


def deletion(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    fill: Fill = 0.0,
    blur_sigma: float | None = None,
    steps: int = 100,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """The area under the class's probability while pixels are replaced by 0, most salient first.

    Source: RISE; CA-Stream, table 1 and MHEX, B.2 (there in percent). Lower is better; from 0 to 1. Arguments, result,
    errors and example: as for `insertion`, and `fill`: what removed pixels become: a number, one for each channel, or
    an image (channels, height, width). With `blur_sigma` they are blurred instead.
    """
    metric = Deletion(fill, blur_sigma, steps, activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size)


class _Curve(TensorMetric):
    def __init__(self, blur_sigma: float | None, steps: int, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.blur_sigma = blur_sigma
        self.steps = positive_int("steps", steps)

    def passes(self, shape: Sequence[int]) -> int:
        """One for each step, and the start."""
        return self.steps + 1

    def _scores(self, predictions: Predictions, start: Tensor, end: Tensor, y: Tensor, a: Tensor) -> Scores:
        curve = exchange_curve(predictions, start, end, y, a, steps=self.steps, descending=True, probability=True)
        axis = f"fraction of pixels in {self.name.lower()}", np.linspace(0, 1, self.steps + 1).tolist()
        return Scores(area(curve), is_constant(a), {"probability": curve}, axis)


class Insertion(_Curve):
    """Insertion: the area under the probability as pixels are inserted into the blurred image, most salient first.

    Source: RISE; CA-Stream, table 1. Higher is better; from 0 to 1. Undefined: constant maps, which are scored row by
    row. The curve is in `curves`, and plotted by `plot`.

    Args:
        blur_sigma: The blur's standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.
        steps: The number of steps in which all pixels are inserted.
        **options: As for every Quantus metric.
    """

    name = "Insertion"

    def __init__(self, blur_sigma: float | None = None, steps: int = 100, **options: Unpack[Options]) -> None:
        super().__init__(blur_sigma, steps, **options)

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `insertion`."""
        return self._scores(predictions, blurred(x, self.blur_sigma), x, y, a)


class Deletion(_Curve):
    """Deletion: the area under the class's probability while pixels are replaced by 0, most salient first.

    Source: RISE; CA-Stream, table 1. Lower is better; from 0 to 1. Undefined: constant maps, which are scored row by
    row. The curve is in `curves`, and plotted by `plot`.

    Args:
        fill: What removed pixels become: a number, one for each channel, or an image (channels, height, width).
        blur_sigma: Blur pixels by this standard deviation instead of filling them. None: fill them.
        steps: The number of steps in which all pixels are removed.
        **options: As for every Quantus metric.
    """

    name = "Deletion"
    score_direction = ScoreDirection.LOWER

    def __init__(
        self, fill: Fill = 0.0, blur_sigma: float | None = None, steps: int = 100, **options: Unpack[Options]
    ) -> None:
        super().__init__(blur_sigma, steps, **options)
        self.fill = fill

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `deletion`."""
        end = filled(x, self.fill) if self.blur_sigma is None else blurred(x, self.blur_sigma)
        return self._scores(predictions, x, end, y, a)
