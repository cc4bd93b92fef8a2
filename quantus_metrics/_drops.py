"""How much of a class's probability a perturbation removes or adds."""

import torch
from torch import Tensor

from ._predictions import Predictions


def before_and_after(predictions: Predictions, x: Tensor, y: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (batch,) for the original and for the perturbed inputs."""
    before = predictions.of(x, y, probability=True)
    return before, predictions.perturbed(lambda rows: perturbed[rows], y, probability=True)


def relative_drop(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """`max(0, (before - after) / before)`, and where it is undefined: `before` is not above 0; 0 there."""
    undefined = before <= 0
    drop = (before - after).clamp(min=0) / torch.where(undefined, 1, before)
    return torch.where(undefined, 0, drop), undefined


def relative_gain(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """`max(0, (after - before) / (1 - before))`, and where it is undefined: `before` is not below 1; 0 there."""
    undefined = before >= 1
    gain = (after - before).clamp(min=0) / torch.where(undefined, 1, 1 - before)
    return torch.where(undefined, 0, gain), undefined
