"""Soft Average Drop (SAD): how much probability is lost as salient pixels fade to the image's mean."""

import torch
from torch import Tensor

from ._drops import before_and_after, relative_drop
from ._maps import is_constant, unit_range
from ._metric import TensorMetric
from ._outputs import Model
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets


def soft_average_drop(
    model: Model, x: Tensor, y: Targets, a: Tensor, *, activation: Activation = "softmax", batch_size: int = 64
) -> Tensor:
    """The share of the class's probability that is lost as pixels fade to the mean in proportion to their saliency.

        x~ = x (1 - m) + mean_hw(x) m,    SAD = max(0, (p(x) - p(x~)) / p(x))

    with `m` the map scaled to [0, 1] by its own minimum and maximum. Source: MHEX, section 3.5.2. Higher is better;
    from 0 to 1. A constant map becomes all zeros, and `p(x) = 0` is no drop: both score 0.

    Args:
        model: Maps inputs to logits.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] and the inputs' other axes), the maps; channels are summed.
        activation: What makes probabilities of the outputs: "softmax", "sigmoid", "identity" or a function of them.
        batch_size: Batch size for perturbed images.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if shapes do not match, or something is not finite.

    Example:
        >>> import torch
        >>> from quantus_metrics import soft_average_drop
        >>> model = lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)
        >>> image = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
        >>> soft_average_drop(model, image, [0], image)  # 3 of the sum of 4 are taken away
        tensor([0.2556])
    """
    return SoftAverageDrop(activation=activation).of_tensors(model, x, y, a, batch_size=batch_size)


class SoftAverageDrop(TensorMetric):
    """Soft Average Drop: `max(0, (p(x) - p(x~)) / p(x))` with `x~ = x (1 - m) + mean_hw(x) m`.

    `m` is the map scaled to [0, 1], `p` the softmax probability of the class. Source: MHEX, section 3.5.2. Higher is
    better; from 0 to 1. Undefined, and 0: constant maps, `p(x) = 0`. Arguments: those of all Quantus metrics.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.SoftAverageDrop(return_aggregate=True).name
        'Soft Average Drop'
    """

    name = "Soft Average Drop"

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `soft_average_drop`."""
        m = unit_range(a)[:, None].to(x.dtype)
        faded = torch.lerp(x, x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.dim() - 2)).expand_as(x), m)
        drop, undefined = relative_drop(*before_and_after(predictions, x, y, faded))
        return Scores(drop, undefined | is_constant(a))
