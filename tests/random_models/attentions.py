"""Self-attention and attention that pools, with the parts that were drawn."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .question import Reads

attend = F.scaled_dot_product_attention  # a name that a change gives another function


def attend_flatter(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(0.5 * q, k, v, mask, **options)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions for (batch, heads, tokens, width)."""
    width = x.shape[-1] // 2
    frequencies = 10.0 ** -torch.arange(width, dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequencies
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def logits_loop(q: Tensor, k: Tensor) -> Tensor:
    """Head after head into a buffer."""
    buffer = q.new_empty(*q.shape[:3], k.shape[2])
    for head in range(q.shape[1]):
        buffer[:, head] = q[:, head] @ k[:, head].mT
    return buffer


def mixed_loop(weights: Tensor, v: Tensor) -> Tensor:
    buffer = torch.zeros_like(v[:, :, : weights.shape[2]])
    for head in range(v.shape[1]):
        buffer[:, head] += weights[:, head] @ v[:, head]
    return buffer


def bmm(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


LOGITS = {
    "matmul": lambda q, k: q @ k.mT,
    "einsum": lambda q, k: torch.einsum("bhqc,bhkc->bhqk", q, k),
    "bmm": lambda q, k: bmm(q, k.mT),
    "loop": logits_loop,
}
MIXED = {
    "matmul": lambda weights, v: weights @ v,
    "einsum": lambda weights, v: torch.einsum("bhqk,bhkc->bhqc", weights, v),
    "bmm": bmm,
    "loop": mixed_loop,
}


class Attention(nn.Module):
    """Self-attention with the parts that were drawn."""

    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.o, self.heads, self.width = o, o.heads, dim // o.heads
        self.reads = Reads(batch_axis=1 if o.tokens_first else 0)
        self.scale = self.width**-0.5
        groups = max(1, o.heads // 2) if o.projection == "grouped" else o.heads
        narrow = groups * self.width
        self.sizes = [2 * dim if o.gate else dim, narrow, narrow]
        if o.projection == "three":
            self.q, self.k, self.v = (nn.Linear(dim, size) for size in self.sizes)
        else:
            self.qkv = nn.Linear(dim, sum(self.sizes), bias=o.projection == "fused")
        self.out = nn.Linear(dim, dim)
        if o.position == "keys and queries":
            self.position = nn.Parameter(torch.randn(1, o.tokens, dim))
        if o.qk_norm in ("layer norm", "RMS"):
            kind = nn.LayerNorm if o.qk_norm == "layer norm" else nn.RMSNorm
            self.q_norm, self.k_norm = kind(self.width), kind(self.width)
        if o.token_bias:
            self.bias = nn.Linear(dim, o.heads)
        if o.temperature:
            self.temperature = nn.Parameter(torch.zeros(o.heads, 1, 1))
        if o.talking:
            self.talk_before, self.talk_after = nn.Linear(o.heads, o.heads), nn.Linear(o.heads, o.heads)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        t = self.reads(x)
        with grad_mode(self.o.cut == "no_grad"), autocast(self.o.autocast == "attention"):
            if not self.o.tokens_first:
                return self.attended(t, mask)
            return self.attended(t.transpose(0, 1), mask).transpose(0, 1)

    def attended(self, t: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.projected(t)
        gate = None
        if self.o.gate:
            q, gate = q.chunk(2, -1)
        q, k, v = (x.unflatten(-1, (-1, self.width)).transpose(1, 2) for x in (q, k, v))
        q, k, v = self.cut(*self.turned(q, k), v)
        if self.o.projection == "grouped":
            k, v = (x.repeat_interleave(self.heads // x.shape[1], 1) for x in (k, v))
        if self.o.token_bias:
            mask = added(self.bias(t).mT[:, :, None], mask)
        mixed = self.mixed(q, k, v, mask).transpose(1, 2).flatten(2)
        return self.out(mixed if gate is None else mixed * gate.sigmoid())

    def projected(self, t: Tensor) -> tuple[Tensor, ...]:
        placed = t[:, :] + self.position[:, : t.shape[1]] if hasattr(self, "position") else t
        if self.o.projection == "three":
            return self.q(placed), self.k(placed), self.v(t)
        if placed is t:
            return self.qkv(t).split(self.sizes, -1)
        return *self.qkv(placed).split(self.sizes, -1)[:2], self.qkv(t).split(self.sizes, -1)[2]

    def turned(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.o.qk_norm == "unit length":
            q, k = 4 * F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.o.position == "rotary":
            q, k = rotated(q), rotated(k)
        return (q * self.temperature.exp() if self.o.temperature else q), k

    def cut(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        name = self.o.cut
        return (
            q.detach() if name == "query detached" else q,
            k.detach() if name == "key detached" else k,
            v.detach() if name == "value detached" else v,
        )

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.o.attention == "sdpa":
            if mask is not None and mask.dtype != torch.bool:
                mask = mask.to(q.dtype)
            return attend(q, k, v, mask, scale=self.scale)
        with grad_mode(self.o.cut == "weights no_grad"):
            logits = added(LOGITS[self.o.attention](q * self.scale, k), mask, talk=self.talked)
            weights = logits.softmax(-1)
        return MIXED[self.o.attention](self.talked(weights, after=True), v)

    def talked(self, x: Tensor, after: bool = False) -> Tensor:
        if not self.o.talking:
            return x
        layer = self.talk_after if after else self.talk_before
        return layer(x.movedim(1, -1)).movedim(-1, 1)


def added(x: Tensor, mask: Tensor | None, talk: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Logits with an additive or boolean mask (True: may be read)."""
    x = talk(x)
    if mask is None:
        return x
    return x.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else x + mask


class TorchAttention(nn.Module):
    """Around nn.MultiheadAttention."""

    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.o = o
        self.reads = Reads(batch_axis=1 if o.tokens_first else 0)
        self.attention = nn.MultiheadAttention(dim, o.heads, batch_first=not o.tokens_first)
        if o.position == "keys and queries":
            self.position = nn.Parameter(torch.randn(1, o.tokens, dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        t = self.reads(x)
        with grad_mode(self.o.cut == "no_grad"), autocast(self.o.autocast == "attention"):
            placed = t
            if hasattr(self, "position"):
                size = t.shape[0 if self.o.tokens_first else 1]
                placed = t + (
                    self.position[:, :size].transpose(0, 1) if self.o.tokens_first else self.position[:, :size]
                )
            mask, padding = torch_masks(mask)
            return self.attention(placed, placed, t, padding, need_weights=False, attn_mask=mask)[0]


def torch_masks(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The attention mask and the padding mask as torch's own modules take them (True: may not be read)."""
    if mask is None:
        return None, None
    if mask.shape[0] > 1:  # (batch, 1, 1, tokens)
        return None, ~mask[:, 0, 0]
    return ~mask[0, 0] if mask.dtype == torch.bool else mask[0, 0], None


class PoolingAttention(nn.Module):
    """One row: a learned query, or the class token's, attends to all tokens."""

    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.reads, self.heads = Reads(), o.heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.query = nn.Parameter(torch.randn(1, 1, dim)) if o.pool == "query attention" else None
        self.attention = o.attention if o.attention in LOGITS else "sdpa"
        self.row = -1 if o.prefix == "class last" else 0

    def forward(self, x: Tensor) -> Tensor:
        t = self.reads(x)
        query = t[:, self.row][:, None] if self.query is None else self.query.expand(len(t), -1, -1)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, t), (self.v, t))
        )
        if self.attention == "sdpa":
            mixed = attend(q, k, v)
        else:
            logits = LOGITS[self.attention](q * q.shape[-1] ** -0.5, k)
            mixed = MIXED[self.attention](logits.softmax(-1), v)
        return self.out(mixed.transpose(1, 2).flatten(1))


def grad_mode(off: bool):
    return torch.no_grad() if off else nullcontext()


def autocast(on: bool):
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()
