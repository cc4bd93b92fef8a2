"""Which token each key of an attention belongs to, found by changing tokens and seeing which values change."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .attention_calls import AttentionCall
from .continuation import NotReplayableError
from .token_pass import TokenPass
from .wide_types import WideTypes

NOBODY = -1  # owns what no token changes, as a sink


class KeysOfNoTokenError(ValueError):
    """The keys of an attention cannot be told apart by tokens."""


def key_owners(run: TokenPass, call: AttentionCall) -> Tensor:
    """The number of the token that each key of an attention belongs to, NOBODY of what no token changes.

    Half of the tokens are changed, then the other half, for each bit of their numbers: a value that one token alone
    makes changes in exactly one of both.

    Args:
        run: The pass.
        call: The attention.

    Returns:
        (..., keys), with the leading axes of the values.

    Raises:
        KeysOfNoTokenError: if a key belongs to several tokens, or a token has none.
    """
    before = _values(run, call, run.tokens)
    numbers = torch.arange(run.count, device=run.tokens.device)
    owners = torch.zeros(before.shape[:-1], dtype=torch.long, device=before.device)
    anybody = torch.zeros_like(owners, dtype=torch.bool)
    for bit in range(max(1, (run.count - 1).bit_length())):
        chosen = (numbers >> bit) & 1 == 1
        ones, zeros = (_changed(before, _values(run, call, _moved(run, half))) for half in (chosen, ~chosen))
        if bool((ones & zeros).any()) or (bit and bool(((ones | zeros) != anybody).any())):
            raise KeysOfNoTokenError(
                "Values of this attention are made of several tokens each (pooled, merged or mixed by a convolution), "
                "so that no single token can be left out. Take CDAM, which needs no keys of single tokens."
            )
        owners |= ones.long() << bit
        anybody = ones | zeros
    owners = owners.masked_fill(~anybody, NOBODY)
    ordered = owners.sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != NOBODY)).any()):
        raise KeysOfNoTokenError(
            "The values of this attention do not lie as (batch, heads, tokens, width), so that it is not seen which "
            "weight belongs to which token. Take CDAM, which needs no keys of single tokens."
        )
    if len(owners[anybody].unique()) < run.count:
        raise KeysOfNoTokenError(
            "Some tokens make no value of this attention, so that they cannot be left out of it one by one. Take CDAM, "
            "or choose another `attention`."
        )
    return owners


def _moved(run: TokenPass, chosen: Tensor) -> Tensor:
    """The tokens, some of them changed in all channels."""
    tokens = run.tokens.detach()
    sizes = [1 if axis == run.channels else size for axis, size in enumerate(tokens.shape)]
    step = torch.arange(1, tokens.shape[run.channels] + 1, device=tokens.device).sin()
    step = step.view([-1 if axis == run.channels else 1 for axis in range(tokens.dim())]).to(tokens.dtype)
    return torch.where(chosen.view(1, *sizes[1:]), tokens + step * (1 + tokens.abs().amax()), tokens)


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Which values differ by more than the rounding of a product, whose parts may be summed in another order."""
    rounding = torch.finfo(before.dtype).eps ** 0.75 * before.abs().amax()
    changed: Tensor = (after - before).abs() > rounding
    return changed.any(-1)


def _values(run: TokenPass, call: AttentionCall, tokens: Tensor) -> Tensor:
    """The attention's values for other tokens."""
    if run.reason is None:
        try:
            with torch.no_grad(), WideTypes():
                given = run.layout.from_batch(tokens)
                if call.value == run.slot:
                    return given
                return run.continuation.run(given, [call.value], before=call.operation.index)[0]
        except NotReplayableError as error:
            run.reason = str(error)
    found: list[Tensor] = []

    def look(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        slots = pytree.tree_leaves((call.operation.args, call.operation.kwargs))
        found[:] = [x for slot, x in zip(slots, pytree.tree_leaves((args, kwargs)), strict=False) if slot == call.value]
        return func(*args, **kwargs)

    with torch.no_grad():
        run.rerun(tokens, {call.operation.call: look})
    return found[-1]
