"""Blocks: an attention and an MLP with their norms."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attentions import Attention, TorchAttention, autocast, torch_masks
from .question import Reads


def plus(x: Tensor, y: Tensor, how: str) -> Tensor:
    """The residual addition."""
    if how == "+=":
        x += y
        return x
    if how == "add_":
        return x.add_(y)
    if how == "buffer":
        buffer = torch.empty_like(x)
        buffer[:] = x
        buffer[:] += y
        return buffer
    return x + y


class Mlp(nn.Module):
    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.kind, self.autocast = o.mlp, o.autocast == "mlp"
        self.inner, self.outer, self.drop = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Dropout(0.1)
        if o.mlp == "gated":
            self.gate = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        with autocast(self.autocast):
            y = self.inner(x)
            if self.kind == "relu_":
                y.relu_()
            else:
                y = F.silu(self.gate(x)) * y if self.kind == "gated" else F.gelu(y)
            return self.outer(self.drop(y))


class Block(nn.Module):
    """An attention and an MLP with their norms."""

    def __init__(self, o: SimpleNamespace, dim: int, side: list[Tensor]):
        super().__init__()
        self.o, self.side = o, side
        norm = nn.LayerNorm if o.norm == "LayerNorm" else nn.RMSNorm
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn = (TorchAttention if o.attention == "nn.MultiheadAttention" else Attention)(o, dim)
        self.mlp = Mlp(o, dim) if o.mlp != "none" else None
        self.gamma = nn.Parameter(torch.ones(dim)) if o.layer_scale else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = getattr(self, self.o.block.replace("-", "_").replace(" ", "_"))(x, mask)
        if self.o.side != "none":
            self.side.append(x)
        return x

    def scaled(self, y: Tensor) -> Tensor:
        return y if self.gamma is None else y * self.gamma

    def pre_norm(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = plus(x, self.scaled(self.attn(self.norm1(x), mask)), self.o.add)
        return x + self.mlp(self.norm2(x))

    def post_norm(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm1(plus(x, self.scaled(self.attn(x, mask)), self.o.add))
        return self.norm2(x + self.mlp(x))

    def parallel(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        return plus(x, self.scaled(self.attn(h, mask)) + self.mlp(h), self.o.add)

    def norm_after(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = plus(x, self.norm1(self.scaled(self.attn(x, mask))), self.o.add)
        return x + self.norm2(self.mlp(x))

    def attention_only(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return plus(x, self.scaled(self.attn(self.norm1(x), mask)), self.o.add)


class EncoderLayer(nn.TransformerEncoderLayer):
    """Torch's, which in evaluation mode without gradients goes a fast way of its own."""

    def __init__(self, o: SimpleNamespace, dim: int, side: list[Tensor]):
        super().__init__(dim, o.heads, 2 * dim, activation="gelu", batch_first=True, norm_first=o.norm_first)
        self.reads, self.keeps, self.side = Reads(), o.side != "none", side

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = super().forward(x, *torch_masks(mask))
        if self.keeps:
            self.side.append(x)
        return x

    def _sa_block(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return super()._sa_block(self.reads(x), *args, **options)
