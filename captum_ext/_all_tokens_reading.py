"""Relevance for models whose output reads all tokens, by automatic differentiation from queries, keys and values on.

As these are linear in the tokens, they are projected once for all copies, and

    S_i = sum (t_i Wq).dq_i + (t_i Wk).dk_i + (t_i Wv).dv_i

needs no gradient with respect to the tokens. `t` is what the gradient is multiplied with: the tokens, or their
difference from the baseline.

Source: Brocki et al. 2024, equations 2, 5 and 6; the rearrangement is ours and exact.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapters import AttentionTail

from ._features import Copies, exactly
from ._targets import Score


class AllTokensChunk(NamedTuple):
    """Some copies of the tokens, evaluated at once.

    Attributes:
        copies: How many, and their layout.
        features: Queries, keys and values, (m * batch, heads, tokens, width) each.
        multipliers: `t W` of each, (batch or m * batch, heads, tokens, width).
        tokens: (m * batch, tokens, channels).
        multiplier: `t`, (batch or m * batch, tokens, channels).
        weights: (m,), of the copies in the sum.
    """

    copies: Copies
    features: Sequence[Tensor]
    multipliers: Sequence[Tensor]
    tokens: Tensor
    multiplier: Tensor
    weights: Tensor


class AllTokensReading:
    """The model's output for a chunk, and the relevance of the tokens for it."""

    def __init__(self, tail: AttentionTail, chunks: Iterator[AllTokensChunk]) -> None:
        self._tail = tail
        self._chunks = chunks
        self.readout = tail.read(self._mix)

    @property
    def copies(self) -> int:
        """How many copies the chunk has."""
        return self._chunk.copies.number

    def _mix(self) -> tuple[Tensor, Tensor]:
        self._chunk = next(self._chunks)
        self._leaves = [x.requires_grad_() for x in (*self._chunk.features, self._chunk.tokens)]
        with torch.enable_grad():
            return self._tail.attention.mix(*self._chunk.features, rows=self._tail.rows), self._chunk.tokens

    def relevance(self, score: Score, *, again: bool) -> tuple[Tensor, Tensor]:
        """Scores (batch, tokens), summed over the chunk, and whether any patch received a gradient, (batch,).

        Args:
            score: Reads the target's scores.
            again: Will it be asked for another score? Else memory is freed.
        """
        chunk = self._chunk
        with torch.enable_grad():
            total = score(self.readout).sum()
        found: tuple[Tensor | None, ...] = (None,) * len(self._leaves)
        if total.requires_grad:
            found = torch.autograd.grad(total, self._leaves, retain_graph=again, allow_unused=True)
        part = chunk.weights.new_zeros(chunk.copies.number, chunk.copies.batch, chunk.copies.rows)
        reached = torch.zeros_like(part, dtype=torch.bool)
        with exactly(chunk.tokens):
            for gradient, multiplier in zip(found, (*chunk.multipliers, chunk.multiplier), strict=True):
                if gradient is not None:
                    batches = gradient.unflatten(0, (-1, chunk.copies.batch))
                    products = batches * multiplier.unflatten(0, (-1, chunk.copies.batch))
                    part += products.sum(-1) if products.dim() == 4 else products.sum((2, 4))
                    reached |= (batches != 0).any(-1) if products.dim() == 4 else (batches != 0).any(-1).any(2)
            weighted = (chunk.weights.view(-1, 1, 1) * part).sum(0)
        return weighted, reached[..., self._tail.prefix :].any(-1).any(0)
