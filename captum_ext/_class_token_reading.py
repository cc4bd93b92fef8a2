"""Relevance for models whose output reads their first tokens only: at the price of one forward pass.

With the last attention's products `s_i = scale q.(k_i)` and weights `a = softmax(s)`, its result for the class token is
`o = sum_i a_i v_i` per head, and what follows is run on that one row. With `g = df/do`,

    ds_i = a_i (v_i.g - o.g)
    S_i  = sum_heads a_i (t_i Wv).g + scale ds_i (t_i Wk).q        and (t_0 Wq).dq for the class token itself,

where `t` is what the gradient is multiplied with: the tokens, or their difference from the baseline. So no gradient is
projected back to token space, and keys and values, which are linear in the tokens, are projected once for all steps of
a path. Of noise, only its products with one vector per head are needed.

Source: Brocki et al. 2024, equations 2, 5 and 6; the rearrangement is ours and exact.
Shapes: a chunk of m copies and the r first tokens give M = m * r rows, (batch, heads, M, ...), copy after copy.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters import Attention

from ._features import Copies, Features, LinearFeatures, exactly, known_attention
from ._reading import Reading
from ._targets import Score


class ClassTokenChunk(NamedTuple):
    """Some copies of the tokens, evaluated at once.

    Attributes:
        copies: How many, and their layout.
        keys: Their keys.
        values: Their values, without the projection's bias.
        tokens: (m * batch, rows, channels), the first tokens.
        multiplier: (m * batch, rows, channels), `t` of the first tokens.
        weights: (m,), of the copies in the sum.
    """

    copies: Copies
    keys: Features
    values: LinearFeatures
    tokens: Tensor
    multiplier: Tensor
    weights: Tensor


class ClassTokenReading(Reading[ClassTokenChunk]):
    """In closed form, but for what follows the attention."""

    def _attended(self, chunk: ClassTokenChunk) -> Tensor:
        attention = self._attention = known_attention(self._tail)
        self._tokens = chunk.tokens.requires_grad_()
        with torch.enable_grad():
            query = attention.in_heads(F.linear(self._tokens, *attention.query))
            self._query = query if attention.turn_query is None else attention.turn_query(query)
        with exactly(self._tokens):
            self._vectors = chunk.copies.as_rows(self._query.detach().to(chunk.weights.dtype))
            products, self._along = chunk.keys.products(self._vectors)
            self._weights = _masked(attention, products, chunk.copies).softmax(-1)
            mixed = chunk.values.mix(self._weights)
            if attention.value.bias is not None:
                mixed = mixed + attention.value.bias.to(mixed).view(attention.heads, 1, -1)
            mixed = chunk.copies.as_samples(mixed).transpose(1, 2).flatten(2).to(query.dtype)
        self._mixed = mixed.requires_grad_()
        with torch.enable_grad():
            return attention.output(self._mixed, self._tokens)

    def relevance(self, score: Score, *, again: bool) -> tuple[Tensor, Tensor]:
        """As for Reading."""
        chunk, copies = self._chunk, self._chunk.copies
        ends = (self._mixed, self._tokens)
        found = self._gradients(score, ends, again=again)
        of_mixed, of_tokens = (torch.zeros_like(x) if g is None else g for x, g in zip(ends, found, strict=True))
        with exactly(self._tokens):
            gradient = copies.as_rows(self._attention.in_heads(of_mixed.to(chunk.weights.dtype)))
            gradient = gradient * chunk.weights.repeat_interleave(copies.rows)[:, None]
            products, along = chunk.values.products(gradient)
            value_part = self._weights * along
            of_weights = products - (self._weights * products).sum(-1, keepdim=True)
            of_products = self._attention.scale * self._weights * of_weights
            key_part, of_vectors = chunk.keys.pull(of_products, self._vectors, self._along)
            part = value_part.sum((1, 2)) + key_part
            of_query = copies.as_samples(of_vectors).to(self._query.dtype)
            (through_query,) = torch.autograd.grad(self._query, self._tokens, of_query, retain_graph=again)
            wide = chunk.weights.dtype
            weights = chunk.weights.repeat_interleave(copies.batch).view(-1, 1, 1)
            of_rows = through_query.to(wide) + weights * of_tokens.to(wide)
            own = (chunk.multiplier.to(wide) * of_rows).sum(2).unflatten(0, (-1, copies.batch)).sum(0)
            part[:, : copies.rows] += own
            looked_at = (self._weights[..., self._tail.prefix :] > 0).flatten(1).any(1)
            reached = looked_at & (gradient != 0).flatten(1).any(1)
        return part, reached


def _masked(attention: Attention, products: Tensor, copies: Copies) -> Tensor:
    mask, scaled = attention.mask_of(copies.rows), attention.scale * products
    if mask is None:
        return scaled
    if mask.shape[-2] > 1:
        mask = mask.repeat(*[1] * (mask.dim() - 2), copies.number, 1)
    return scaled + mask
