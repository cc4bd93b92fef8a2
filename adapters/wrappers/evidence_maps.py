"""What each place of an activation contributes: evidence of channels, or of a kernel of channels, times it."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def evidence_map(weights: Tensor, activation: Tensor) -> Tensor:
    """`sum_k e_k * A_k`, a product, or a convolution that keeps the size, with each sample's own weights.

    Source: Sun and Liò 2025 (MHEX), section 3.4 and appendix E.

    Args:
        weights: e, (batch, channels), or (batch, channels, *kernel) of odd sizes.
        activation: A, (batch, channels, *places).

    Returns:
        (batch, *places).

    Example:
        >>> import torch
        >>> evidence_map(torch.tensor([[1.0, -1.0]]), torch.tensor([[[3.0, 5.0], [1.0, 2.0]]]))
        tensor([[2., 3.]])
    """
    parts, offsets = _by_offset(weights, activation)
    return torch.stack([_moved(parts[:, i], offset) for i, offset in enumerate(offsets)]).sum(0)


def evidence_for_region(weights: Tensor, activation: Tensor, region: Tensor) -> Tensor:
    """What each place contributes to the sum of `evidence_map` over a region, so that it adds up to this sum.

        sum_k A_k (e_k transposed * R)

    Without a kernel that is the map inside the region; with one, places around it count, as far as the kernel reaches.
    Source: Sun and Liò 2025 (MHEX), appendix E.

    Args:
        weights: e, as for `evidence_map`.
        activation: A, (batch, channels, *places).
        region: R, (batch, *places), how much of each place lies in it.

    Returns:
        (batch, *places).

    Example:
        >>> import torch
        >>> weights, region = torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
        >>> evidence_for_region(weights, torch.ones(1, 1, 4), region)
        tensor([[1., 2., 4., 0.]])
    """
    parts, offsets = _by_offset(weights, activation)
    around = [_moved(region, [-step for step in offset]) for offset in offsets]
    return (parts * torch.stack(around, 1)).sum(1)


def _by_offset(weights: Tensor, activation: Tensor) -> tuple[Tensor, list[list[int]]]:
    """`sum_k e_k A_k` for each offset of the kernel, (batch, offsets, *places), and the offsets from its middle."""
    kernel, places = weights.shape[2:], activation.shape[2:]
    matrices = weights.reshape(len(weights), weights.shape[1], -1).transpose(1, 2)
    parts = torch.bmm(matrices, activation.flatten(2)).view(len(weights), -1, *places)
    return parts, [list(one) for one in itertools.product(*(range(-(size // 2), size // 2 + 1) for size in kernel))]


def _moved(maps: Tensor, offset: Sequence[int]) -> Tensor:
    """Maps (batch, *places) whose value at p is that at p + offset; 0 outside."""
    sides = [side for step in reversed(offset) for side in (-step, step)]
    return F.pad(maps, sides) if any(sides) else maps
