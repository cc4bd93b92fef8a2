"""From which queries of the last attention a map of attention weights is read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attention_weights import UnreadableAttentionError, by_heads
from .continuation import NotReplayableError
from .last_attention import LastAttention
from .operations import NotInClosedFormError, Replacement
from .prediction import Prediction
from .saved_tensors import is_of_views
from .token_pass import TokenPass


def rows_read(run: TokenPass, queries: int, tokens: int) -> Tensor:
    """From which queries of the last attention a map is read, (batch, queries) with sum 1.

    That of the class token: the one query that the output reads, or the first of several. Where the output reads all of
    them, that of a class token among them; without one, all that belong to patches or words. Those of padding, which
    nobody attends to, are left out by the caller.
    """
    rows = run.tokens.new_zeros((run.batch, queries), dtype=torch.promote_types(run.tokens.dtype, torch.float32))
    try:
        picked = LastAttention(run).picked_queries
        if isinstance(picked, Tensor):
            return rows.scatter_(1, picked.to(rows.device)[:, None], 1)
        if picked is not None and len(picked) < queries:
            rows[:, picked[0]] = 1
            return rows
    except NotInClosedFormError:
        pass
    prefix = _prefix(run, tokens) if queries == tokens else []
    read = _gradient_rows(run, queries, lambda prediction: prediction.outputs).any(0)
    first = next((row for row in prefix if read[row]), None)
    if first is not None:
        rows[:, first] = 1
        return rows
    if read.sum() == 1:
        rows[:, int(read.nonzero()[0])] = 1
        return rows
    rows[:] = 1
    rows[:, prefix] = 0
    return rows


def rows_of_score(run: TokenPass, queries: int, score: Callable[[Prediction], Tensor]) -> Tensor:
    """From which queries of the last attention a score is computed, (batch, queries) with sum 1, each as much.

    Args:
        run: The pass.
        queries: How many there are.
        score: From predictions to the scores (samples,).
    """
    read = _gradient_rows(run, queries, score).to(run.tokens.device)
    rows = read.to(torch.promote_types(run.tokens.dtype, torch.float32))
    return rows / rows.sum(1, keepdim=True).clamp(min=1)


def _prefix(run: TokenPass, count: int) -> list[int]:
    """The tokens that are no patches."""
    grid = run.grid()
    if grid is None:
        return []
    patches = set(grid.places.tolist())
    return [number for number in range(count) if number not in patches]


def _gradient_rows(run: TokenPass, queries: int, score: Callable[[Prediction], Tensor]) -> Tensor:
    """Which queries' results a score of the prediction depends on, (batch, queries) booleans."""
    call = run.continuation.attention
    assert call is not None  # noqa: S101
    leaf: list[Tensor] = []

    def replacement(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaf[:] = [func(*args, **kwargs).detach().requires_grad_()]
        torch.set_grad_enabled(True)
        return leaf[0].clone()

    prediction = _prediction(run, {call.operation.call: replacement})
    with torch.enable_grad():
        outputs = score(prediction)
    everything = torch.ones(run.batch, queries, dtype=torch.bool)
    if not outputs.requires_grad:
        return everything
    direction = torch.linspace(-1, 1, outputs.numel(), device=outputs.device).sin().view_as(outputs)
    (gradient,) = torch.autograd.grad(outputs, leaf, direction.to(outputs.dtype), allow_unused=True)
    try:
        return everything if gradient is None else (by_heads(gradient, run.batch) != 0).any(-1).any(1)
    except UnreadableAttentionError:
        return everything


def _prediction(run: TokenPass, replacements: dict[int, Replacement]) -> Prediction:
    """What the model returns with the last attention replaced."""
    if run.reason is None:
        try:
            return run.replayed(run.tokens, replacements)
        except NotReplayableError as error:
            run.reason = str(error)
    try:
        with torch.no_grad():
            return run.repeat(replacements)
    except RuntimeError as error:
        if not is_of_views(error):
            raise
    with torch.enable_grad():  # as the model itself does, although the graph of all layers is kept then
        return run.repeat(replacements)
