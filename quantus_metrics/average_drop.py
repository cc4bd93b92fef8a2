"""Average Drop, Gain and Increase: what becomes of the probability when only the salient pixels are kept."""

from quantus.helpers.enums import ScoreDirection
from torch import Tensor

from ._drops import before_and_after, relative_drop, relative_gain
from ._maps import is_constant, unit_range
from ._metric import TensorMetric
from ._outputs import Model
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets


def average_drop(
    model: Model, x: Tensor, y: Targets, a: Tensor, *, activation: Activation = "softmax", batch_size: int = 64
) -> Tensor:
    """The share of the class's probability that is lost when each pixel is multiplied by its saliency.

        x~ = x m,    AD = max(0, p(x) - p(x~)) / p(x)

    with `m` the map scaled to [0, 1] by its own minimum and maximum. Source: CA-Stream, table 1 (there in percent). Not
    the drop by removal (`removal_drop`), whose direction is the opposite. Lower is better; from 0 to 1. `p(x) = 0` is
    no drop.

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
        >>> from quantus_metrics import average_drop, average_gain, average_increase
        >>> model = lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)
        >>> image = torch.tensor([[[[4.0, 2.0], [0.0, -3.0]]]])
        >>> average_drop(model, image, [0], image.clamp(min=0))  # the 2 is halved, the -3 is gone
        tensor([0.])
        >>> average_gain(model, image, [0], image.clamp(min=0))
        tensor([0.8589])
        >>> average_increase(model, image, [0], image.clamp(min=0))
        tensor([1.])
    """
    return AverageDrop(activation=activation).of_tensors(model, x, y, a, batch_size=batch_size)


def average_gain(
    model: Model, x: Tensor, y: Targets, a: Tensor, *, activation: Activation = "softmax", batch_size: int = 64
) -> Tensor:
    """The fraction of the remaining probability, 1 - p, that is gained when each pixel is multiplied by its saliency.

        x~ = x m,    AG = max(0, p(x~) - p(x)) / (1 - p(x))

    Source: CA-Stream, table 1 (there in percent). Higher is better; from 0 to 1. `p(x) = 1` is no gain. Arguments,
    result, errors and example: as for `average_drop`.
    """
    return AverageGain(activation=activation).of_tensors(model, x, y, a, batch_size=batch_size)


def average_increase(
    model: Model, x: Tensor, y: Targets, a: Tensor, *, activation: Activation = "softmax", batch_size: int = 64
) -> Tensor:
    """Whether the probability grows when each pixel is multiplied by its saliency.

        x~ = x m,    AI = 1 if p(x~) > p(x) else 0

    Source: CA-Stream, table 1 (there in percent). Higher is better; 0 or 1. Arguments, result, errors and example: as
    for `average_drop`.
    """
    return AverageIncrease(activation=activation).of_tensors(model, x, y, a, batch_size=batch_size)


class AverageDrop(TensorMetric):
    """Average Drop (AD): `max(0, p(x) - p(x m)) / p(x)`, `m` the map scaled to [0, 1].

    Source: CA-Stream, table 1. Lower is better, unlike in `RemovalDrop`, which removes the salient pixels; from 0
    to 1. Undefined: `p(x) = 0`, which scores 0, and constant maps, which keep nothing. Arguments: those of all Quantus
    metrics.
    """

    name = "Average Drop"
    score_direction = ScoreDirection.LOWER

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `average_drop`."""
        drop, undefined = relative_drop(*_kept(predictions, x, y, a))
        return Scores(drop, undefined | is_constant(a))


class AverageGain(TensorMetric):
    """Average Gain (AG): `max(0, p(x m) - p(x)) / (1 - p(x))`, `m` the map scaled to [0, 1].

    Source: CA-Stream, table 1. Higher is better; from 0 to 1. Undefined: `p(x) = 1`, which scores 0, and constant maps,
    which keep nothing. Arguments: those of all Quantus metrics.
    """

    name = "Average Gain"

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `average_gain`."""
        gain, undefined = relative_gain(*_kept(predictions, x, y, a))
        return Scores(gain, undefined | is_constant(a))


class AverageIncrease(TensorMetric):
    """Average Increase (AI): 1 if `p(x m) > p(x)`, else 0, `m` the map scaled to [0, 1].

    Source: CA-Stream, table 1. Higher is better; 0 or 1. Undefined: constant maps, which keep nothing. Arguments: those
    of all Quantus metrics.
    """

    name = "Average Increase"

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `average_increase`."""
        before, after = _kept(predictions, x, y, a)
        return Scores((after > before).to(before.dtype), is_constant(a))


def _kept(predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return before_and_after(predictions, x, y, x * unit_range(a)[:, None].to(x.dtype))
