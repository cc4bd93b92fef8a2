"""Saliency maps as the scores use them."""

import torch
from torch import Tensor


def unit_range(maps: Tensor) -> Tensor:
    """Each map scaled to [0, 1] by its own minimum and maximum; a constant map becomes all zeros."""
    flat = maps.flatten(1).double()  # wide enough for any range
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1)
    return ((flat - low) / span).view_as(maps).to(maps.dtype)


def is_constant(maps: Tensor) -> Tensor:
    """(batch,): which maps have one value only."""
    flat = maps.flatten(1)
    return flat.amin(1) == flat.amax(1)


def order(maps: Tensor, *, descending: bool) -> Tensor:
    """(batch, pixels): each pixel's place when they are sorted; equal ones keep the order of the image, row by row."""
    sorted_ = maps.flatten(1).argsort(stable=True, dim=1, descending=descending)
    places = torch.arange(sorted_.shape[1], device=maps.device).expand_as(sorted_)
    return torch.empty_like(sorted_).scatter_(1, sorted_, places)
