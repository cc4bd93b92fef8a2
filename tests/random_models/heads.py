"""Heads, functions in front of them, and outputs."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .question import CLASSES


class StraightThrough(torch.autograd.Function):
    """Rounds; the gradient passes."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class ScaledGradient(torch.autograd.Function):
    """The identity; the gradient is scaled by what was passed."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].sigmoid()


class Cosine(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.classes = nn.Parameter(torch.randn(CLASSES, dim))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.normalize(x, dim=-1) @ F.normalize(self.classes, dim=-1).mT


class SeveralLinears(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(dim, size) for size in (2, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


class OneLogit(nn.Linear):
    def __init__(self, dim: int):
        super().__init__(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


class Contrast(nn.Module):
    """As many texts as images."""

    def __init__(self, dim: int, texts: int):
        super().__init__()
        self.register_buffer("texts", torch.randn(texts, dim))
        self.text = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return (5 * F.normalize(x, dim=-1) @ F.normalize(self.text(self.texts), dim=-1).mT).softmax(-1)


HEADS = {
    "linear": lambda dim: nn.Linear(dim, CLASSES),
    "mlp": lambda dim: nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, CLASSES)),
    "several linears": SeveralLinears,
    "cosine": Cosine,
    "one logit": OneLogit,
    "scripted mlp": lambda dim: torch.jit.script(
        nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, CLASSES))
    ),
}


class NamedOutput(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class ModelOutput(OrderedDict):
    """As transformers': by name, by attribute, and None is left out."""

    logits: Tensor | None = None
    hidden_states: Tensor | None = None
    features: Tensor | None = field(default=None)

    def __post_init__(self):
        for name in ("features", "logits", "hidden_states"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)
