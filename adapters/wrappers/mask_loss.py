"""The loss of logits of masks of any resolution."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .resizing import resized, same_proportions


def mask_loss(logits: Tensor, masks: Tensor, ignore_index: int = -100, dice: float = 0.0) -> Tensor:
    """Cross entropy of logits that are upsampled to the masks, plus `dice` times the soft Dice loss.

        CE + dice (1 - mean_c (2 sum p_c g_c + 1) / (sum p_c + sum g_c + 1)),    p = softmax(logits)

    with g_c = 1 where the mask is c; sums and means are over all places of the batch but those to ignore. Source:
    Milletari et al. 2016 (V-Net), equation 3. Differs: no squares, and 1 is added, so that absent classes count.

    Args:
        logits: (batch, classes, ...) of one to three axes.
        masks: (batch, ...) classes, as `checked_masks` returns them.
        ignore_index: The value of places that count nothing.
        dice: The weight of the Dice loss.

    Returns:
        A scalar; 0 where all places are to be ignored.

    Example:
        >>> import torch
        >>> mask_loss(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1, 2, 3]]]))  # log 4
        tensor(1.3863)
    """
    given = resized(logits, masks.shape[1:])
    counted = masks != ignore_index
    loss = F.cross_entropy(given, masks, ignore_index=ignore_index, reduction="sum") / counted.sum().clamp(min=1)
    return loss + dice * _dice_loss(given, masks, counted) if dice else loss


def _dice_loss(logits: Tensor, masks: Tensor, counted: Tensor) -> Tensor:
    probabilities = logits.softmax(1).movedim(1, -1)[counted]
    shown = F.one_hot(masks[counted], logits.shape[1]).to(probabilities)
    overlaps = 2 * (probabilities * shown).sum(0) + 1
    return 1 - (overlaps / (probabilities.sum(0) + shown.sum(0) + 1)).mean()


def checked_masks(logits: Tensor, masks: Tensor, ignore_index: int) -> Tensor:
    """The masks as int64, if they fit logits (batch, classes, ...) of any resolution of the same image.

    Raises:
        TypeError: if they are no integers.
        ValueError: if they are of another shape or proportion, or hold classes out of range.
    """
    if not isinstance(masks, Tensor) or masks.is_floating_point() or masks.is_complex():
        got = masks.dtype if isinstance(masks, Tensor) else type(masks)
        raise TypeError(f"Expected masks as a tensor of integers, the class of each place; got {got}. Use `.long()`.")
    batch, classes, *size = logits.shape
    if masks.dim() != logits.dim() - 1 or len(masks) != batch:
        advice = " Take the axis of channels away: `masks.squeeze(1)`." if masks.dim() == logits.dim() else ""
        raise ValueError(
            f"Expected masks (batch, ...) of {batch} samples and {len(size)} axes of places, for logits of shape "
            f"{tuple(logits.shape)}; got shape {tuple(masks.shape)}.{advice}"
        )
    if not same_proportions(size, masks.shape[1:]):
        raise ValueError(
            f"Expected masks of the images' size, of which {tuple(logits.shape)} are logits; got shape "
            f"{tuple(masks.shape)}, which has other proportions."
        )
    masks = masks.long()
    wrong = masks[(masks != ignore_index) & ((masks < 0) | (masks >= classes))]
    if wrong.numel():
        raise ValueError(
            f"Expected masks of classes 0 to {classes - 1}, or ignore_index={ignore_index} where nothing counts; got "
            f"{torch.unique(wrong)[:8].tolist()}. Pass that value as `ignore_index`, or wrap with more `num_classes`."
        )
    return masks
