"""Relevance by automatic differentiation, for models that are known from their last attention on.

If the output reads all tokens, from the attention's queries, keys and values on: as these are linear in the tokens,
they are projected once for all copies, and

    S_i = sum (t_i Wq).dq_i + (t_i Wk).dk_i + (t_i Wv).dv_i

needs no gradient with respect to the tokens. `t` is what the gradient is multiplied with: the tokens, or their
difference from the baseline. If what the attention computes is not known, from the tokens on.

Source: Brocki et al. 2024, equations 2, 5 and 6; the rearrangement is ours and exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._features import Copies, exactly
from ._reading import Reading
from ._targets import Score


class DifferentiatedChunk(NamedTuple):
    """Some copies of the tokens, evaluated at once.

    Attributes:
        copies: How many, and their layout.
        features: Queries, keys and values, (m * batch, heads, tokens, width) each; none if that is unknown.
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


class DifferentiatedReading(Reading[DifferentiatedChunk]):
    """By automatic differentiation from the chunk's features and tokens on."""

    def _attended(self, chunk: DifferentiatedChunk) -> Tensor:
        attention = self._tail.attention
        self._leaves = [x.requires_grad_() for x in (*chunk.features, chunk.tokens)]
        with torch.enable_grad():
            if attention is None:
                return self._tail.attend(chunk.tokens)
            return attention.output(attention.mix(chunk.features, self._tail.rows), chunk.tokens[:, : self._tail.rows])

    def relevance(self, score: Score, *, again: bool) -> tuple[Tensor, Tensor]:
        """As for Reading."""
        chunk = self._chunk
        found = self._gradients(score, self._leaves, again=again)
        part = chunk.weights.new_zeros(chunk.copies.number, chunk.copies.batch, chunk.tokens.shape[1])
        reached = torch.zeros(chunk.copies.batch, dtype=torch.bool, device=part.device)
        with exactly(chunk.tokens):
            for gradient, multiplier in zip(found, (*chunk.multipliers, chunk.multiplier), strict=True):
                if gradient is not None:
                    part += self._products(gradient, multiplier)
            if (deciding := found[2 if chunk.features else 0]) is not None:  # patches' values, or their tokens
                patches = deciding.movedim(-2, 1)[:, self._tail.prefix :]
                reached = (patches != 0).flatten(1).any(1).unflatten(0, (-1, chunk.copies.batch)).any(0)
            weighted = (chunk.weights.view(-1, 1, 1) * part).sum(0)
        return weighted, reached

    def _products(self, gradient: Tensor, multiplier: Tensor) -> Tensor:
        """Summed over heads and channels, (m, batch, tokens)."""
        batch = self._chunk.copies.batch
        products: Tensor = gradient.unflatten(0, (-1, batch)) * multiplier.unflatten(0, (-1, batch))
        return products.sum(-1) if products.dim() == 4 else products.sum((2, 4))
