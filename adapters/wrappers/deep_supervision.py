"""The losses of several classifiers along one network."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import number
from .mask_loss import checked_masks, mask_loss
from .resizing import resized

Mode = Literal["finetune", "pretrain"]


def deep_supervision_loss(
    outputs: Sequence[Tensor], labels: Tensor, mode: Mode = "finetune", *, ignore_index: int = -100, dice: float = 0.0
) -> Tensor:
    """The loss of the logits `y_l` of L blocks for the labels `t`.

        finetune: sum_l CE(y_l, t)
        pretrain: CE(sum_l lambda_l y_l, t),    lambda_l = 0.5^(L - l)

    Source: Sun and Liò 2025 (MHEX), section 3.3. Of masks each y is upsampled to the mask, and CE is `mask_loss`.

    Args:
        outputs: What `MHEX.deep_forward` returned, (batch, classes) for each block, of masks (batch, classes, ...).
        labels: (batch,) classes, or (batch, classes) probabilities; masks (batch, ...) of the images' size.
        mode: As above.
        ignore_index: The class of samples or places that count nothing.
        dice: Of masks, the weight of the soft Dice loss beside the cross entropy.

    Returns:
        A scalar, the mean over the batch.

    Raises:
        TypeError: if masks are no integers.
        ValueError: if there are no outputs, `mode` is none of the two, masks do not fit, or Dice is asked of classes.

    Example:
        >>> import torch
        >>> from adapters import deep_supervision_loss
        >>> outputs = [torch.zeros(2, 4), torch.zeros(2, 4)]
        >>> deep_supervision_loss(outputs, torch.tensor([0, 3]))  # twice log 4
        tensor(2.7726)
        >>> deep_supervision_loss(outputs, torch.tensor([0, 3]), mode="pretrain")
        tensor(1.3863)
    """
    if not outputs:
        raise ValueError("Expected the logits of at least one block, got none.")
    if mode not in get_args(Mode):
        raise ValueError(f"Expected `mode` to be 'finetune' or 'pretrain', got {mode!r}.")
    masks = outputs[0].dim() > 2
    if not 0 <= number("dice", dice) < float("inf") or (dice and not masks):
        raise ValueError(f"Expected a finite `dice` of at least 0, and of masks only; got {dice}.")
    if masks:
        given = checked_masks(outputs[-1], labels, ignore_index)
        outputs = [resized(y, given.shape[1:]) for y in outputs] if mode == "pretrain" else outputs
    if mode == "pretrain":
        last = len(outputs) - 1
        outputs = [torch.stack([0.5 ** (last - i) * y for i, y in enumerate(outputs)]).sum(0)]
    if masks:
        return torch.stack([mask_loss(y, given, ignore_index, dice) for y in outputs]).sum()
    return torch.stack([F.cross_entropy(y, labels, ignore_index=ignore_index) for y in outputs]).sum()
