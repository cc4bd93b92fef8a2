"""Average Drop by removal: how much probability is lost when the salient pixels or tokens are taken away."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from quantus.helpers.enums import DataType
from torch import Tensor

from ._checks import unit_fraction
from ._drops import before_and_after, relative_drop
from ._maps import is_constant, order, unit_range
from ._metric import Options, TensorMetric
from ._outputs import Model
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets

Fill = float | Sequence[float] | Tensor


def removal_drop(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    threshold: float = 0.5,
    fill: Fill = 0.0,
    fraction: float = 0.1,
    mask_id: int | None = None,
    pad_id: int | None = None,
    relative: bool = True,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """The share of the class's probability that is lost when salient pixels, or the most salient tokens, are removed.

        images: x~ = x where m <= threshold, else fill,      drop = max(0, (p(x) - p(x~)) / p(x))

    with `m` the map scaled to [0, 1] by its own minimum and maximum. Source: MHEX, section 3.5.1 ("AVG Drop"). Not
    the Average Drop that keeps the salient pixels (`average_drop`), whose direction is the opposite. In texts the top
    10 % of the real tokens, rounded up, become the mask token. Higher is better; from 0 to 1. A constant map removes
    nothing from an image, and `p(x) = 0` is no drop: both score 0. Ties between tokens are broken in reading order.

    Args:
        model: Maps inputs to logits. With `pad_id` it is given `attention_mask`.
        x: (batch, channels, height, width); signals (batch, channels, length); volumes, with a depth before height; or
            token ids (batch, tokens).
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] height, width), channels are summed; or (batch, tokens).
        threshold: Pixels whose `m` is above it are removed, from 0 to 1.
        fill: What removed pixels become: a number, one for each channel, or an image (channels, height, width).
        fraction: The fraction of tokens that is removed, from 0 to 1.
        mask_id: The mask token; needed for texts.
        pad_id: The padding token, which is never removed, and no real token. None: all tokens are real.
        relative: Divide by `p(x)`; False, as in the paper's table of texts: `max(0, p(x) - p(x~))`.
        activation: What makes probabilities of the outputs: "softmax", "sigmoid", "identity" or a function of them.
        batch_size: Batch size for perturbed inputs.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if shapes do not match, something is not finite, or texts come without `mask_id`.

    Example:
        >>> import torch
        >>> from quantus_metrics import removal_drop
        >>> model = lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)
        >>> image = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
        >>> removal_drop(model, image, [0], image)  # from the sigmoid of 4 to that of 0
        tensor([0.4908])
    """
    metric = RemovalDrop(threshold, fill, fraction, mask_id, pad_id, relative, activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size)


class RemovalDrop(TensorMetric):
    """Average Drop by removal ("AVG Drop"): `max(0, (p(x) - p(x~)) / p(x))`, salient pixels or tokens removed in `x~`.

    Source: MHEX, section 3.5.1. Higher is better, unlike in `AverageDrop`, which keeps the salient pixels; from 0
    to 1. Undefined, and 0: constant maps of images, `p(x) = 0`.

    Args:
        threshold: Pixels whose `m` is above it are removed, from 0 to 1.
        fill: What removed pixels become: a number, one for each channel, or an image (channels, height, width).
        fraction: The fraction of tokens that is removed, from 0 to 1.
        mask_id: The mask token; needed for texts.
        pad_id: The padding token, which is never removed. None: all tokens are real.
        relative: Divide by `p(x)`; False: `max(0, p(x) - p(x~))`.
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.RemovalDrop(mask_id=103, pad_id=0, relative=False).name
        'Removal Drop'
    """

    name = "Removal Drop"
    data_applicability: ClassVar = {DataType.IMAGE, DataType.TEXT}

    def __init__(
        self,
        threshold: float = 0.5,
        fill: Fill = 0.0,
        fraction: float = 0.1,
        mask_id: int | None = None,
        pad_id: int | None = None,
        relative: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.threshold = unit_fraction("threshold", threshold)
        self.fill = fill
        self.fraction = unit_fraction("fraction", fraction)
        self.mask_id = mask_id
        self.pad_id = pad_id
        self.relative = relative

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `removal_drop`."""
        if x.dim() == 2:
            drop, undefined = self._of_tokens(predictions, x, y, a)
        else:
            before, after = before_and_after(predictions, x, y, removed(x, a, self.threshold, self.fill))
            drop, undefined = self._drop(before, after)
            undefined = undefined | is_constant(a)
        return Scores(drop, undefined)

    def _drop(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        if self.relative:
            return relative_drop(before, after)
        return (before - after).clamp(min=0), torch.zeros_like(before, dtype=torch.bool)

    def _of_tokens(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask_id is None:
            raise ValueError(
                f"Inputs of shape {tuple(x.shape)} are token ids, so `mask_id` must say which token takes the place of "
                "the removed ones, as tokenizer.mask_token_id. Images have shape (batch, channels, height, width)."
            )
        if x.is_floating_point():
            raise TypeError(f"Expected token ids of an integer type, got {x.dtype}.")
        x = x.long()
        real = torch.ones_like(x, dtype=torch.bool) if self.pad_id is None else x != self.pad_id
        count = (self.fraction * real.sum(1, keepdim=True, dtype=torch.float64) - 1e-9).ceil()
        remove = real & (order(a.masked_fill(~real, float("-inf")), descending=True) < count)
        both = torch.cat([x, x.masked_fill(remove, self.mask_id)])
        masks = {} if self.pad_id is None else {"attention_mask": real.long().repeat(2, 1)}
        answers = predictions.perturbed(lambda rows: both[rows], y.repeat(2), probability=True, also=masks)
        return self._drop(*answers.chunk(2))


def removed(x: Tensor, a: Tensor, threshold: float, fill: Fill) -> Tensor:
    """The images with the pixels filled whose map, scaled to [0, 1], is above the threshold."""
    return torch.where(unit_range(a)[:, None] > threshold, filled(x, fill), x)


def filled(x: Tensor, fill: Fill) -> Tensor:
    """The fill value as images of the shape of `x`.

    Raises:
        ValueError: if `fill` does not fit an image.
    """
    value = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
    if value.dim() == 1:
        value = value.view(-1, *[1] * (x.dim() - 2))
    try:
        return value.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"Expected `fill` to be a number, one for each channel, or an image of shape {tuple(x.shape[1:])}; got "
            f"shape {tuple(value.shape)}."
        ) from None
