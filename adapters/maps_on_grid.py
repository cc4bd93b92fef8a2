"""Maps averaged over the places of a grid of tokens, and how alike two maps rank them."""

import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDING = 64  # in units of a map's precision


def on_grid(maps: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Maps (batch, ...) averaged over each place of a grid, (batch, *sizes).

    A map that is one on the grid, interpolated linearly as by Captum, is read back: averages would blur it. Values that
    differ by rounding only are equal, so that ranks are not those of noise.

    Raises:
        ValueError: if they have more or fewer axes.
    """
    if maps.dim() - 1 != len(sizes):
        raise ValueError(
            f"Expected maps with the axes of the tokens' grid, {sizes}, got {tuple(maps.shape[1:])}: the tokens of "
            "this model do not lie on the places of the input."
        )
    means = read = maps.double()
    for axis, size in enumerate(sizes, 1):
        averages, between = _resampling(maps.shape[axis], size, maps.device)
        means = _along(axis, averages, means)
        read = _along(axis, torch.linalg.inv(averages @ between) @ averages, read)
    again = read
    for axis, size in enumerate(sizes, 1):
        again = _along(axis, _resampling(maps.shape[axis], size, maps.device)[1], again)
    largest = maps.abs().flatten(1).amax(1).double().view(-1, *[1] * len(sizes))
    wrong = (again - maps).abs().flatten(1).amax(1).view_as(largest) > 1e-4 * largest
    step = torch.where(largest > 0, largest, 1) * _ROUNDING * torch.finfo(maps.dtype).eps
    return (torch.where(wrong, means, read) / step).round() * step


def _resampling(pixels: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrices of averages over the places of an axis (size, pixels), and of interpolation (pixels, size)."""
    averages = F.adaptive_avg_pool1d(torch.eye(pixels, dtype=torch.float64, device=device), size).T
    places = torch.eye(size, dtype=torch.float64, device=device)[None]
    return averages, F.interpolate(places, pixels, mode="linear", align_corners=False)[0].T


def _along(axis: int, matrix: Tensor, values: Tensor) -> Tensor:
    return (values.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """(batch,): Pearson's correlation of the ranks of (batch, ...), equal values sharing theirs; 0 of constant ones."""
    a, b = (_ranks(one.flatten(1)) for one in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 0, (a * b).sum(1) / torch.where(norm > 0, norm, 1), 0).clamp(-1, 1)


def _ranks(values: Tensor) -> Tensor:
    """Each value's place when they are sorted, the mean of those of equal ones, (batch, values)."""
    found = []
    for one in values:
        _, inverse, counts = one.unique(return_inverse=True, return_counts=True)
        found.append((counts.cumsum(0) - (counts - 1) / 2)[inverse])
    return torch.stack(found).double()
