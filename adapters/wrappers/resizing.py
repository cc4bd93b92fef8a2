"""Maps in another size."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (batch, channels, ...) of one to three axes in another size, linearly between the centres of places."""
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(maps, tuple(size), mode=mode)


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The same of maps (batch, ...) without channels."""
    return resized(maps[:, None], size)[:, 0]


def shares(regions: Tensor, size: Sequence[int]) -> Tensor:
    """How much of each of fewer places lies in regions (batch, ...) of zeros and ones: their averages over it.

    Example:
        >>> import torch
        >>> shares(torch.tensor([[[1.0, 1.0, 0.0, 1.0]]]), (1, 2))
        tensor([[[1.0000, 0.5000]]])
    """
    return F.interpolate(regions[:, None], tuple(size), mode="area")[:, 0]


def same_proportions(coarse: Sequence[int], fine: Sequence[int]) -> bool:
    """Can one stride, rounded up or down, lead from the finer size to the coarser one in each axis?

    Example:
        >>> same_proportions((4, 8), (16, 32)), same_proportions((8, 8), (16, 32))
        (True, False)
    """
    lowest = max(size / (count + 1) for count, size in zip(coarse, fine, strict=True))
    highest = min(size / (count - 1) if count > 1 else float("inf") for count, size in zip(coarse, fine, strict=True))
    return lowest < highest
