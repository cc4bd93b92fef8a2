"""Predictions of a model while the pixels of one image are replaced by those of another."""

import torch
from torch import Tensor

from ._maps import order
from ._predictions import Predictions


def exchange_curve(
    predictions: Predictions,
    start: Tensor,
    end: Tensor,
    y: Tensor,
    a: Tensor,
    *,
    steps: int,
    descending: bool,
    probability: bool,
) -> Tensor:
    """(batch, steps + 1) predictions from the images `start` to `end`, pixels replaced in the order of the maps `a`."""
    places = order(a, descending=descending).view_as(a)[:, None]
    counts = (torch.arange(steps + 1, dtype=torch.float64) * a[0].numel() / steps).round().to(a.device)

    def make(indices: Tensor) -> Tensor:
        image, step = indices // len(counts), indices % len(counts)
        there = counts[step].view(-1, *[1] * (start.dim() - 1))
        if len(start) == 1:
            return torch.where(places < there, end, start)  # the same without a copy
        return torch.where(places[image] < there, end[image], start[image])

    classes = y.repeat_interleave(len(counts))
    return predictions.perturbed(make, classes, probability=probability).view(-1, len(counts))


def area(curve: Tensor) -> Tensor:
    """(batch,): the area under curves (batch, steps + 1) over [0, 1]."""
    return torch.trapezoid(curve.double(), dx=1 / (curve.shape[1] - 1)).to(curve.dtype)
