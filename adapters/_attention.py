"""What an attention module computes, as far as the algebra of its queries, keys and values is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Turn = Callable[[Tensor], Tensor]


class UnsuitableError(Exception):
    """This model, or this call of it, cannot be taken apart; whoever asked must run it as a whole."""


class UnknownAttentionError(UnsuitableError):
    """What an attention computes is not known here."""


class Projection(NamedTuple):
    """A linear map of tokens: weight (heads * width, channels) and bias (heads * width) or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Attention:
    """One call of a softmax attention whose queries, keys and values are linear in the same tokens.

    `output(softmax(scale * turn_query(q) . turn_key(k) + mask) v, tokens)` is what the module returns.

    Attributes:
        query: The queries' projection.
        key: The keys' projection.
        value: The values' projection.
        heads: Number of heads.
        scale: Factor of the products.
        output: What follows the mixed values, each row alone: (samples, rows, heads * width) and the rows' own tokens
            (samples, rows, channels) to (samples, rows, channels).
        returns_weights: Does the module return a pair, its output and the attention weights or None?
        mask: Added to the products, broadcasting to (batch, heads, tokens, tokens).
        turn_query: What happens to the first rows' queries (samples, heads, rows, width); None: nothing.
        turn_key: What happens to the keys of all tokens (samples, heads, tokens, width); None: nothing.
        turn_is_linear: Is `turn_key` linear in the keys?
        known_by_parts: Is the module known by its parts only, and not by its class?
    """

    query: Projection
    key: Projection
    value: Projection
    heads: int
    scale: float
    output: Callable[[Tensor, Tensor], Tensor]
    returns_weights: bool = False
    mask: Tensor | None = None
    turn_query: Turn | None = None
    turn_key: Turn | None = None
    turn_is_linear: bool = True
    known_by_parts: bool = False

    def mixed(self, tokens: Tensor, rows: int) -> Tensor:
        """The values mixed for the first rows, (samples, rows, heads * width)."""
        query = self.in_heads(F.linear(tokens[:, :rows], *self.query))
        key, value = (self.in_heads(F.linear(tokens, *projection)) for projection in (self.key, self.value))
        return self.mix((query, key, value), rows)

    def mix(self, features: Sequence[Tensor], rows: int) -> Tensor:
        """The same, from queries, keys and values (samples, heads, rows or tokens, width)."""
        query, key, value = features
        query, key = self.turned(query, key)
        mask = self.mask_of(rows)
        if mask is not None:
            copies = query.shape[0] // mask.shape[0] if mask.dim() == 4 and mask.shape[0] > 1 else 1
            mask = mask.to(query.dtype).repeat(copies, *[1] * (mask.dim() - 1))
        mixed: Tensor = F.scaled_dot_product_attention(query, key, value, mask, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)

    def weights(self, tokens: Tensor, rows: int) -> Tensor:
        """The attention weights of the first rows, (samples, heads, rows, tokens), in float32 or wider."""
        query, key = (F.linear(x, *by) for x, by in ((tokens[:, :rows], self.query), (tokens, self.key)))
        query, key = self.turned(self.in_heads(query), self.in_heads(key))
        wide = torch.promote_types(query.dtype, torch.float32)
        mask = self.mask_of(rows)
        with torch.autocast(tokens.device.type, enabled=False):
            products = self.scale * query.to(wide) @ key.to(wide).mT
            return (products if mask is None else products + mask.to(wide)).softmax(-1)

    def result(self, weights: Tensor, tokens: Tensor) -> Any:
        """What the module returns for these weights of all tokens."""
        value = self.in_heads(F.linear(tokens, *self.value))
        output = self.output((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2), tokens)
        return (output, weights) if self.returns_weights else output

    def turned(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are multiplied."""
        return (
            query if self.turn_query is None else self.turn_query(query),
            key if self.turn_key is None else self.turn_key(key),
        )

    def in_heads(self, x: Tensor) -> Tensor:
        """(samples, tokens, heads * width) as (samples, heads, tokens, width)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def mask_of(self, rows: int) -> Tensor | None:
        """The mask for the first rows' queries."""
        return self.mask if self.mask is None or self.mask.shape[-2] == 1 else self.mask[..., :rows, :]


def runs(module: nn.Module, library: str, qualified_name: str) -> bool:
    """Is the module's forward this function of that library, and not one of a subclass or put in its place?"""
    forward = type(module).forward
    return (
        "forward" not in module.__dict__
        and forward.__qualname__ == qualified_name
        and forward.__module__.startswith(library)
    )


def split(linear: nn.Module, parts: int = 3) -> list[Projection]:
    """The projections that one linear layer makes side by side.

    Raises:
        UnknownAttentionError: if it is not a plain nn.Linear: adapters, quantised and parametrised layers are others.
    """
    if type(linear) is not nn.Linear:
        raise UnknownAttentionError
    biases = [None] * parts if linear.bias is None else linear.bias.chunk(parts)
    return [Projection(weight, bias) for weight, bias in zip(linear.weight.chunk(parts), biases, strict=True)]


def unless_identity(module: nn.Module) -> Turn | None:
    """The module as a function; None if it does nothing."""
    return None if type(module) is nn.Identity else module


def as_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """An attention mask, boolean or added to the products, as one that is added."""
    if mask is None or mask.is_floating_point():
        return mask
    return like.new_zeros(mask.shape).masked_fill_(~mask.bool(), -float("inf"))
