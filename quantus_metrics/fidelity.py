"""Fidelity: the logit while pixels are blurred, the least or the most important ones first."""

from collections.abc import Sequence
from typing import Literal, Unpack

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

Order = Literal["LIF-MIF", "LIF", "MIF"]


def fidelity(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    order: Order = "LIF-MIF",
    blur_sigma: float | None = None,
    steps: int = 100,
    softmax: bool = False,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """How much more logit is left when the least instead of the most important pixels are blurred first.

        A = area under f(x with p % of its pixels blurred) over p from 0 to 100,    score = A_LIF - A_MIF

    by the trapezoidal rule, pixels in ascending (LIF) and descending (MIF) order of the raw map. Source: CDAM,
    section 3.4. Higher is better; in units of logit times percent. Ties are broken row by row.

    Args:
        model: Maps inputs to logits.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] and the inputs' other axes), the maps with their signs; channels are summed.
        order: "LIF-MIF", or one of the areas: "LIF" (higher is better) or "MIF" (lower is better).
        blur_sigma: The blur's standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.
        steps: The number of steps in which all pixels are blurred.
        softmax: Measure the probability instead of the logit.
        activation: What makes probabilities of the outputs: "softmax", "sigmoid", "identity" or a function of them.
        batch_size: Batch size for perturbed images.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if shapes do not match, an input is not finite, or `order` is not one of the three.

    Example:
        >>> import torch
        >>> from quantus_metrics import fidelity
        >>> model = lambda x: torch.stack([x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1)
        >>> image = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
        >>> fidelity(model, image, [0], image, steps=4, blur_sigma=1.0) > 0
        tensor([True])
    """
    metric = Fidelity(order, blur_sigma, steps, activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size, softmax=softmax)


class Fidelity(TensorMetric):
    """Fidelity: the areas under the logit over the percentage of blurred pixels, LIF - MIF.

    LIF blurs the least important pixels first, MIF the most important ones. Source: CDAM, section 3.4. Higher is better
    (for the order "MIF" alone lower); in units of logit times percent. Undefined: constant maps, for which LIF - MIF is
    exactly 0. Both curves are in `curves`, and plotted by `plot`.

    Args:
        order: "LIF-MIF", or one of the areas: "LIF" (higher is better) or "MIF" (lower is better).
        blur_sigma: The blur's standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.
        steps: The number of steps in which all pixels are blurred.
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.Fidelity(order="MIF").score_direction.value
        'lower'
    """

    name = "Fidelity"

    def __init__(
        self, order: Order = "LIF-MIF", blur_sigma: float | None = None, steps: int = 100, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        if order not in ("LIF-MIF", "LIF", "MIF"):
            raise ValueError(f"Expected `order` to be 'LIF-MIF', 'LIF' or 'MIF', got {order!r}.")
        self.order = order
        self.blur_sigma = blur_sigma
        self.steps = positive_int("steps", steps)
        if order == "MIF":
            self.score_direction = ScoreDirection.LOWER  # type: ignore[misc] # of this one

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `fidelity`."""
        end = blurred(x, self.blur_sigma)
        curves = {
            name: exchange_curve(
                predictions, x, end, y, a, steps=self.steps, descending=name == "MIF", probability=predictions.softmax
            )
            for name in self.order.split("-")
        }
        areas = [100 * area(curve) for curve in curves.values()]
        axis = "blurred pixels in percent", np.linspace(0, 100, self.steps + 1).tolist()
        return Scores(areas[0] - areas[1] if len(areas) == 2 else areas[0], is_constant(a), curves, axis)

    def passes(self, shape: Sequence[int]) -> int:
        """One for each step of each order, and their starts."""
        return len(self.order.split("-")) * (self.steps + 1)
