"""An attention of a recorded pass in which some tokens do not take part: what runs in place of its operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_calls import AttentionCall
from .attention_weights import UnreadableAttentionError, fused
from .key_owners import NOBODY, KeysOfNoTokenError, key_owners
from .operations import Replacement
from .token_pass import TokenPass

MASKED = -9e3  # what is added to the products of padding is at most this, -10000 in older models


def replacements_without(run: TokenPass) -> Callable[[Tensor], dict[int, Replacement]]:
    """From the tokens that take part, (tokens,) booleans, to what runs in place of the last attention's operations.

    Args:
        run: The pass.

    Raises:
        ValueError: if the tokens enter no attention with a softmax over keys that belong to single tokens.
    """
    call = run.continuation.attention
    if call is None:
        raise KeysOfNoTokenError(
            "The tokens of this layer enter no attention themselves, so that there is nothing to leave them out of. Is "
            "the layer behind the last attention that mixes tokens? Pass the norm in front of an attention, or none."
        )
    if call.samples_points:
        raise KeysOfNoTokenError(
            "The last attention samples values at points between the tokens (deformable attention), so that no single "
            "token can be left out. Take CDAM."
        )
    if run.reason is None and call.operation not in run.continuation.operations:
        raise KeysOfNoTokenError(
            "The output does not depend on the attention that was found in a way that can be followed. Take CDAM, or "
            "choose another `attention`."
        )
    if _beside(run, call):
        raise KeysOfNoTokenError(
            "The tokens enter several attentions beside each other (sparse attention in blocks, several branches), so "
            "that they cannot be left out of one. Take CDAM, which reads all of them."
        )
    owners = key_owners(run, call)
    return lambda present: _of_call(call, (owners == NOBODY) | present.to(owners.device)[owners])


def _beside(run: TokenPass, call: AttentionCall) -> bool:
    """Does the output also read the tokens by another attention, which does not lie behind this one?"""
    found, behind = run.continuation, {call.output}
    for operation in found.operations:
        if not behind.isdisjoint(operation.inputs):
            behind.update(operation.outputs)
    used = set(found.operations)
    return any(
        other is not call and other.operation in used and other.value in found.dependent and other.value not in behind
        for other in run.watched.finder.calls
    )


def _of_call(call: AttentionCall, kept: Tensor) -> dict[int, Replacement]:
    if call.softmax is None:
        return {call.operation.call: lambda func, args, kwargs: _fused(func, args, kwargs, kept)}
    return {
        call.softmax.call: lambda func, args, kwargs: _softmax(func, args, kwargs, kept),
        call.operation.call: lambda func, args, kwargs: _checked(call, func, args, kwargs, kept),
    }


def _fused(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor) -> Tensor:
    """A fused attention of the keys that are kept, (..., keys)."""
    try:
        given = fused(args, kwargs)
    except UnreadableAttentionError as error:
        raise KeysOfNoTokenError(str(error)) from None
    seen = kept.unsqueeze(-2)
    if given.is_causal:
        places = [torch.arange(size, device=seen.device) for size in given.shape[-2:]]
        seen = seen & (places[1] <= places[0][:, None])
    mask = given.attn_mask
    if mask is not None:
        seen = seen & (mask if mask.dtype is torch.bool else mask > MASKED)
    added = seen if mask is None or mask.dtype is torch.bool else torch.where(seen, mask, -torch.inf)
    added = added if added.dtype is torch.bool else added.to(given.query.dtype)
    found = F.scaled_dot_product_attention(given.query, given.key, given.value, added, scale=given.scale)
    return found.masked_fill(~seen.any(-1, keepdim=True), 0)


def _softmax(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor) -> Tensor:
    """A softmax over the keys that are kept, and over what more there is (sinks)."""
    products, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else None)
    sinks = products.shape[-1] - kept.shape[-1]
    if dim not in (-1, products.dim() - 1) or sinks < 0:
        raise KeysOfNoTokenError(
            f"The weights of the last attention, of shape {tuple(products.shape)}, are not normalised over its "
            f"{kept.shape[-1]} keys. Take CDAM, which needs no keys of single tokens."
        )
    if not _fits(kept.shape[:-1], products.shape[:-2]) and kept.shape[:-1].numel() == products.shape[:-2].numel():
        kept = kept.reshape(*products.shape[:-2], -1)  # samples and heads on one axis; `_checked` sees whether they are
    seen = F.pad(kept, (0, sinks), value=True).unsqueeze(-2)
    if not _fits(seen.shape[:-2], products.shape[:-2]):
        raise KeysOfNoTokenError(
            f"The weights of the last attention have shape {tuple(products.shape)}, which does not fit its values, "
            f"{tuple(kept.shape)} keys. Take CDAM, which needs no keys of single tokens."
        )
    seen = seen & (products > MASKED)
    found: Tensor = func(products.masked_fill(~seen, -torch.inf), *args[1:], **kwargs)
    return found.masked_fill(~seen.any(-1, keepdim=True), 0)


def _fits(own: torch.Size, whole: torch.Size) -> bool:
    """Do leading axes broadcast to those of the products?"""
    return len(own) <= len(whole) and all(a in (1, b) for a, b in zip(reversed(own), reversed(whole), strict=False))


def _checked(
    call: AttentionCall, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor
) -> Any:
    """The product of weights and values, after a look whether those left out have no weight."""
    inputs = list(call.operation.inputs)
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    weights = tensors[inputs.index(call.weights)] if call.weights in inputs and len(tensors) == len(inputs) else None
    out = ~kept.unsqueeze(-2)
    if weights is None or weights.shape[-1] != out.shape[-1] or bool((weights.masked_fill(~out, 0) != 0).any()):
        raise KeysOfNoTokenError(
            "The weights of the last attention are changed on their way to the values, so that no single token can be "
            "left out. Take CDAM, which needs no attention weights."
        )
    return func(*args, **kwargs)
