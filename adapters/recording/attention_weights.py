"""The weights of a model's attentions, although fused attention never writes them down."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attention_calls import AttentionCall
from .continuation import NotReplayableError
from .last_attention import LastAttention
from .operations import NotInClosedFormError, Replacement
from .prediction import DifferentOutputError, Prediction
from .token_pass import TokenPass


class UnreadableAttentionError(ValueError):
    """The weights of an attention cannot be read as one matrix for each sample and head."""


def fused_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The weights that torch's scaled_dot_product_attention uses, by its documented formula, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        products = factor * query.to(wide) @ key.to(wide).mT
        if is_causal:
            allowed = torch.ones(products.shape[-2:], dtype=torch.bool, device=products.device).tril()
            products = products.masked_fill(~allowed, -float("inf"))
        if attn_mask is not None:
            if attn_mask.dtype is torch.bool:
                products = products.masked_fill(~attn_mask, -float("inf"))
            else:
                products = products + attn_mask.to(wide)
        weights: Tensor = products.softmax(-1)
        return weights


def fused_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The values, and the arguments of `fused_weights`."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    value = given.pop("value")
    return value, {k: v for k, v in given.items() if k in ("query", "key", "attn_mask", "is_causal", "scale")}


def by_heads(weights: Tensor, batch: int) -> Tensor:
    """Weights as (batch, heads, queries, tokens).

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
        f"queries, tokens) "
        f"for a batch of {batch}: it looks at parts of the tokens alone. Take CDAM, which needs no attention weights."
    )


def weights_with_prediction(run: TokenPass, calls: list[AttentionCall]) -> tuple[list[Tensor], Prediction]:
    """The weights of some attentions, in order, and what the model returns, differentiable by them.

    The model runs again from the beginning; the first of the attentions starts the graph.

    Raises:
        UnreadableAttentionError: if the model returns something else with its attention written out.
    """
    if len(calls) == 1 and calls[0] is run.continuation.attention and run.reason is None:
        try:
            return _weights_of(run, calls, lambda replacements: run.replayed(run.tokens, replacements))
        except (NotReplayableError, DifferentOutputError) as error:
            run.reason = str(error)
    try:
        with torch.no_grad():
            return _weights_of(run, calls, run.repeat)
    except DifferentOutputError as error:
        raise UnreadableAttentionError(f"With its attention written out: {error}") from None


def _weights_of(
    run: TokenPass,
    calls: list[AttentionCall],
    repeat: Callable[[dict[int, Replacement]], Prediction],
) -> tuple[list[Tensor], Prediction]:
    kept = _KeptWeights()
    prediction = repeat({(call.softmax or call.operation).call: kept.replacement(call) for call in calls})
    run.check(prediction)
    if len(kept.weights) != len(calls):
        raise UnreadableAttentionError("The model ran other attentions when it ran again.")
    return kept.weights, prediction


class _KeptWeights:
    """The weights of attentions that run again, each the start of a graph or a part of one."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def replacement(self, call: AttentionCall) -> Replacement:
        """What runs in an attention's place."""
        run = self._fused if call.softmax is None else self._softmax
        return functools.partial(run, call.operation.differentiable)

    def _fused(
        self, differentiable: bool, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        value, arguments = fused_arguments(args, kwargs)
        weights = self._keep(fused_weights(**arguments), differentiable)
        return weights.to(value.dtype) @ value

    def _softmax(
        self, differentiable: bool, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        return self._keep(func(*args, **kwargs), differentiable)

    def _keep(self, weights: Tensor, differentiable: bool) -> Tensor:
        first = not torch.is_grad_enabled()
        if first or not weights.requires_grad:  # or they do not depend on the attentions before
            weights = weights.detach().requires_grad_()
        if first:
            torch.set_grad_enabled(differentiable)  # and not where the model's own code forbids it
        self.weights.append(weights)
        return weights


def last_weights(run: TokenPass) -> Tensor:
    """The weights of the last attention, (batch, heads, queries, tokens).

    Raises:
        UnreadableAttentionError: if they have another form.
    """
    call = run.continuation.attention
    assert call is not None  # noqa: S101
    if run.reason is not None:
        return check_keys(by_heads(weights_with_prediction(run, [call])[0][0].detach(), run.batch), run)
    return check_keys(_last_weights(run, call), run)


def check_keys(weights: Tensor, run: TokenPass) -> Tensor:
    """The same weights of the last attention, if there is a key for each token.

    Raises:
        UnreadableAttentionError: if not.
    """
    if weights.shape[-1] != run.count:
        raise UnreadableAttentionError(
            f"The last attention has weights of shape {tuple(weights.shape)} for {run.count} tokens: it looks at parts "
            "of them alone, or pools them. Take CDAM, which needs no attention weights."
        )
    return weights


def _last_weights(run: TokenPass, call: AttentionCall) -> Tensor:
    kept: list[Tensor] = []
    if call.softmax is not None:
        kept = run.values(list(call.softmax.outputs[:1]))
        return by_heads(kept[0], run.batch)
    args, kwargs = run.arguments_of(call.operation)
    return by_heads(fused_weights(**fused_arguments(args, kwargs)[1]), run.batch)


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
    read = _gradient_rows(run, queries)
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


def _prefix(run: TokenPass, count: int) -> list[int]:
    """The tokens that are no patches."""
    grid = run.grid()
    if grid is None:
        return []
    patches = set(grid.order.tolist())
    return [number for number in range(count) if number not in patches]


def _gradient_rows(run: TokenPass, queries: int) -> Tensor:
    """Which queries' results the output depends on, (queries,) booleans."""
    call = run.continuation.attention
    assert call is not None  # noqa: S101
    leaf: list[Tensor] = []

    def replacement(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        torch.set_grad_enabled(True)
        leaf.append(func(*args, **kwargs).detach().requires_grad_())
        return leaf[0].clone()

    with torch.no_grad():
        outputs = run.repeat({call.operation.call: replacement}).outputs
    everything = torch.ones(queries, dtype=torch.bool)
    if not outputs.requires_grad:
        return everything
    direction = torch.linspace(-1, 1, outputs.numel(), device=outputs.device).sin().view_as(outputs)
    (gradient,) = torch.autograd.grad(outputs, leaf, direction.to(outputs.dtype), allow_unused=True)
    try:
        return everything if gradient is None else (by_heads(gradient, run.batch) != 0).any(-1).any(1).any(0)
    except UnreadableAttentionError:
        return everything
