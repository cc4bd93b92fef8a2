"""The weights of one attention, some queries at a time, although fused attention never writes them down."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_calls import AttentionCall
from .continuation import substituted
from .operations import Slot
from .saved_tensors import version_of

Find = Callable[[Slot], Tensor | None]


class UnreadableAttentionError(ValueError):
    """The weights of an attention cannot be read as one matrix for each sample and head."""


@dataclass(frozen=True)
class FusedWeights:
    """Those that torch's scaled_dot_product_attention uses, by its documented formula, in float32 or wider.

    Attributes:
        query: (batch, heads, queries, width), or with batch and heads in one axis.
        key: (batch, heads, tokens, width).
        value: (batch, heads, tokens, width).
        attn_mask: Added to the products, or where booleans are False, removed.
        is_causal: Does a query see only the tokens up to its own place?
        scale: Of the products; None: 1 / sqrt(width).
        versions: Of queries, keys and values: how often they had been changed in place.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None
    versions: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all weights."""
        batch: torch.Size = torch.broadcast_shapes(self.query.shape[:-2], self.key.shape[:-2])
        return (*batch, self.query.shape[-2], self.key.shape[-2])

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.query.device

    @property
    def room(self) -> int:
        """How many numbers are held."""
        return self.query.numel() + self.key.numel() + self.value.numel()

    def of(self, queries: Tensor) -> Tensor:
        """The weights of some queries, given by number."""
        _check_unchanged(self.versions, self.query, self.key, self.value)
        wide = torch.promote_types(self.query.dtype, torch.float32)
        with torch.autocast(self.query.device.type, enabled=False):
            factor = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
            products = factor * self.query.index_select(-2, queries).to(wide) @ self.key.to(wide).mT
            if self.is_causal:
                seen = torch.arange(self.key.shape[-2], device=queries.device) <= queries[:, None]
                products = products.masked_fill_(~seen, -torch.inf)
            mask = self.attn_mask
            if mask is not None:
                if mask.dim() > 1 and mask.shape[-2] > 1:
                    mask = mask.index_select(-2, queries)
                if mask.dtype is torch.bool:
                    products = products.masked_fill(~mask, -torch.inf)
                else:
                    products = products + mask.to(wide)
            if mask is None:
                return products.softmax(-1)
            nothing = (products == -torch.inf).all(-1, keepdim=True)  # as for padding on the left: torch gives zeros
            return products.softmax(-1).masked_fill_(nothing, 0)

    def gradient(self, of_output: Tensor, queries: Tensor) -> Tensor:
        """The gradient by the weights of some queries, from that by the output, which is linear in the weights."""
        wide = torch.promote_types(of_output.dtype, torch.float32)
        with torch.autocast(of_output.device.type, enabled=False):
            return of_output.index_select(-2, queries).to(wide) @ self.value.to(wide).mT


@dataclass(frozen=True)
class WrittenWeights:
    """Those that the model's code makes itself.

    Attributes:
        weights: (batch, heads, queries, tokens), or with batch and heads in one axis.
        versions: How often they had been changed in place.
    """

    weights: Tensor
    versions: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all weights."""
        return tuple(self.weights.shape)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.weights.device

    @property
    def room(self) -> int:
        """How many numbers are held."""
        return self.weights.numel()

    def of(self, queries: Tensor) -> Tensor:
        """The weights of some queries, given by number."""
        _check_unchanged(self.versions, self.weights)
        return self.weights.index_select(-2, queries)

    def gradient(self, of_weights: Tensor, queries: Tensor) -> Tensor:
        """The gradient by the weights of some queries, from that by all."""
        return of_weights.index_select(-2, queries)


Weights = FusedWeights | WrittenWeights


def weights_of(call: AttentionCall, find: Find) -> Weights:
    """The weights of an attention.

    Args:
        call: The attention.
        find: The tensor of a slot, if it lives.

    Raises:
        UnreadableAttentionError: if they are not there any more.
    """
    if call.softmax is None:
        args, kwargs = substituted((call.operation.args, call.operation.kwargs), find)
        return fused(args, kwargs)
    found = find(call.softmax.outputs[0]) if call.softmax.weights is None else call.softmax.weights
    found = found if found is not None or call.weights is None else find(call.weights)
    if found is None:
        raise UnreadableAttentionError("The weights of an attention are not there any more when they are used.")
    return WrittenWeights(found.detach(), (version_of(found),))


def fused(args: tuple[Any, ...], kwargs: dict[str, Any]) -> FusedWeights:
    """Those of a call of scaled_dot_product_attention."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    tensors = {name: x.detach() for name, x in given.items() if isinstance(x, Tensor)}
    if given.get("dropout_p"):
        raise UnreadableAttentionError(
            f"An attention of this model drops weights at random in evaluation mode (dropout_p={given['dropout_p']}), "
            "so that those it used are not known. In its code, pass dropout_p only `if self.training`."
        )
    versions = tuple([version_of(tensors[name]) for name in ("query", "key", "value")])
    return FusedWeights(**tensors, is_causal=bool(given.get("is_causal")), scale=given.get("scale"), versions=versions)


def _check_unchanged(versions: tuple[int, ...], *tensors: Tensor) -> None:
    if versions and versions != tuple([version_of(x) for x in tensors]):
        raise UnreadableAttentionError(
            "What an attention read is changed in place later, so that its weights are not known any more. Take CDAM, "
            "which needs no attention weights."
        )


def by_heads(weights: Tensor, batch: int) -> Tensor:
    """Weights, or what has their axes, as (batch, heads, queries, tokens).

    Raises:
        UnreadableAttentionError: if they have another form, as those of windows.
    """
    if weights.dim() == 4 and weights.shape[0] == batch:
        return weights
    if weights.dim() == 3 and weights.shape[0] % batch == 0:
        heads: Tensor = weights.unflatten(0, (batch, -1))
        return heads
    raise UnreadableAttentionError(
        f"An attention of this model has weights of shape {tuple(weights.shape)}, which is not (batch, heads, "
        f"queries, tokens) for a batch of {batch}: it looks at parts of the tokens alone. Take CDAM, which needs no "
        "attention weights."
    )
