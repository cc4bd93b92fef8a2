"""Effective Average Drop (EAD): the drop by removal, weighted by the marked area."""

from typing import Unpack

from torch import Tensor

from ._checks import unit_fraction
from ._drops import before_and_after, relative_drop
from ._maps import is_constant, unit_range
from ._metric import Options, TensorMetric
from ._outputs import Model
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets
from .removal_drop import Fill, removed


def area_weight(area: Tensor) -> Tensor:
    """`f(a) = 5 a / (1 + 256 a^5)`: 0 at 0, its maximum 1 at a quarter of the image, 5/257 at all of it.

    Source: MHEX, appendix B.1.

    Args:
        area: Fractions of the image.

    Returns:
        Weights of the same shape.

    Example:
        >>> import torch
        >>> area_weight(torch.tensor([0.0, 0.25, 1.0]))
        tensor([0.0000, 1.0000, 0.0195])
    """
    return 5 * area / (1 + 256 * area**5)


def effective_average_drop(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    threshold: float = 0.5,
    area_threshold: float = 0.2,
    fill: Fill = 0.0,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """The drop by removal times a weight that is 1 for maps that mark a quarter of the image.

        area = mean [m > area_threshold],    EAD = f(area) max(0, (p(x) - p(x~)) / p(x)),    f(a) = 5a / (1 + 256 a^5)

    with `m` and `x~` as in `removal_drop`. Source: MHEX, section 3.5.3 and appendix B.1. Higher is better; from 0 to 1.
    A constant map and `p(x) = 0` score 0.

    Args:
        model: Maps inputs to logits.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] and the inputs' other axes), the maps; channels are summed.
        threshold: Pixels whose `m` is above it are removed, from 0 to 1.
        area_threshold: Pixels whose `m` is above it count for the area, from 0 to 1.
        fill: What removed pixels become: a number, one for each channel, or an image (channels, height, width).
        activation: What makes probabilities of the outputs: "softmax", "sigmoid", "identity" or a function of them.
        batch_size: Batch size for perturbed images.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if shapes do not match, or something is not finite.

    Example:
        >>> import torch
        >>> from quantus_metrics import effective_average_drop
        >>> model = lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)
        >>> image = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
        >>> effective_average_drop(model, image, [0], image)  # a quarter of the image: as the drop by removal
        tensor([0.4908])
    """
    metric = EffectiveAverageDrop(threshold, area_threshold, fill, activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size)


class EffectiveAverageDrop(TensorMetric):
    """Effective Average Drop: `f(area) max(0, (p(x) - p(x~)) / p(x))`, `f(a) = 5a / (1 + 256 a^5)`.

    `area` is the fraction of pixels whose map, scaled to [0, 1], is above `area_threshold`; in `x~` those above
    `threshold` are removed. Source: MHEX, section 3.5.3 and appendix B.1. Higher is better; from 0 to 1. Undefined,
    and 0: constant maps, `p(x) = 0`.

    Args:
        threshold: Pixels whose `m` is above it are removed, from 0 to 1.
        area_threshold: Pixels whose `m` is above it count for the area, from 0 to 1.
        fill: What removed pixels become: a number, one for each channel, or an image (channels, height, width).
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.EffectiveAverageDrop(area_threshold=0.1).threshold
        0.5
    """

    name = "Effective Average Drop"

    def __init__(
        self, threshold: float = 0.5, area_threshold: float = 0.2, fill: Fill = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.threshold = unit_fraction("threshold", threshold)
        self.area_threshold = unit_fraction("area_threshold", area_threshold)
        self.fill = fill

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `effective_average_drop`."""
        area = (unit_range(a) > self.area_threshold).double().flatten(1).mean(1)
        before, after = before_and_after(predictions, x, y, removed(x, a, self.threshold, self.fill))
        drop, undefined = relative_drop(before, after)
        return Scores(area_weight(area).to(drop.dtype) * drop, undefined | is_constant(a))
