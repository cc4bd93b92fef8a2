"""The attention of each layer as matrices, for maps that are made of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.outputs import OutputChoice
from .attention_calls import AttentionCall
from .attention_weights import (
    UnreadableAttentionError,
    by_heads,
    check_keys,
    fused_arguments,
    fused_weights,
    last_weights,
    rows_read,
    weights_with_prediction,
)
from .continuation import substituted
from .prediction import Prediction
from .recorder import Recorder
from .token_pass import TokenPass


class AttentionMatrices(NamedTuple):
    """What the maps of attention weights are made of.

    Attributes:
        matrices: One of each layer, (batch, queries, tokens), the last one last.
        row: Which queries of the last one are read, (batch, queries) with sum 1.
        pools: Does the last one pool, so that its queries are other than its tokens?
        run: The pass they come from.
    """

    matrices: list[Tensor]
    row: Tensor
    pools: bool
    run: TokenPass


def mean_weights(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    followed: int,
    *,
    last_only: bool,
    output: OutputChoice = None,
) -> AttentionMatrices:
    """The attention weights, means over the heads.

    Args:
        forward: The model, or any function that calls it.
        arguments: Its positional arguments.
        followed: How many of them are the inputs.
        last_only: Is the last layer enough?
        output: Which tensor of what the model returns is explained.

    Raises:
        ValueError: if there is no attention, or one whose weights are no matrices of one set of tokens.
    """
    if last_only:
        run = TokenPass(forward, arguments, followed=followed, output=output)
        with torch.no_grad():
            means = [last_weights(run).mean(1)]
    else:
        found: dict[int, Tensor | UnreadableAttentionError] = {}
        batch = len(arguments[0])

        def collect(recorder: Recorder, call: AttentionCall) -> None:
            found[call.ordinal] = _mean(recorder, call, batch)

        run = TokenPass(forward, arguments, followed=followed, on_attention=collect, output=output)
        means = _matrices([found[call.ordinal] for call in _attentions_of(run)])
        check_keys(means[-1], run)
    _check_fit(means)
    return AttentionMatrices(means, _row(run, means[-1]), means[-1].shape[1] != means[-1].shape[2], run)


def weights_and_gradients(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    followed: int,
    gradients: Callable[[Prediction, Sequence[Tensor]], Sequence[Tensor]],
    combine: Callable[[Tensor, Tensor], Tensor],
    *,
    last_only: bool,
    latent: bool | nn.Module = False,
    output: OutputChoice = None,
) -> AttentionMatrices:
    """Matrices of the attention weights and their gradients.

    Args:
        forward: As above.
        arguments: As above.
        followed: As above.
        gradients: From what the model returned and the weights of each layer, their gradients.
        combine: From weights and gradient (batch, heads, queries, tokens) the matrix.
        last_only: As above.
        latent: Is what the head reads wanted?
        output: As above.
    """
    run = TokenPass(forward, arguments, followed=followed, latent=latent, output=output)
    calls = _attentions_of(run)
    weights, prediction = weights_with_prediction(run, calls[-1:] if last_only else calls)
    heads = [by_heads(x.detach(), run.batch) for x in weights]
    check_keys(heads[-1], run)
    _check_fit(heads)
    found = gradients(prediction, weights)
    with torch.no_grad():
        matrices = [combine(x, by_heads(g, run.batch)) for x, g in zip(heads, found, strict=True)]
        row = _row(run, heads[-1].mean(1))
    return AttentionMatrices(matrices, row, matrices[-1].shape[1] != matrices[-1].shape[2], run)


def _mean(recorder: Recorder, call: AttentionCall, batch: int) -> Tensor | UnreadableAttentionError:
    def value(slot: Any) -> Tensor | None:
        return recorder.tensor(slot)

    with torch.no_grad():
        if call.softmax is None:
            args, kwargs = substituted((call.operation.args, call.operation.kwargs), value)
            weights = fused_weights(**fused_arguments(args, kwargs)[1])
        else:
            found = recorder.tensor(call.softmax.outputs[0])
            found = found if found is not None or call.weights is None else recorder.tensor(call.weights)
            if found is None:
                return UnreadableAttentionError(
                    "The weights of an attention are not there any more when they are used."
                )
            weights = found
        try:
            return by_heads(weights.detach(), batch).mean(1)
        except UnreadableAttentionError as error:
            return error


def _attentions_of(run: TokenPass) -> list[AttentionCall]:
    calls = run.attentions()
    if not calls:
        raise UnreadableAttentionError("It is not seen through which attentions the output is reached.")
    return calls


def _matrices(found: Sequence[Tensor | UnreadableAttentionError]) -> list[Tensor]:
    for one in found:
        if isinstance(one, UnreadableAttentionError):
            raise one
    return [one for one in found if isinstance(one, Tensor)]


def _check_fit(matrices: list[Tensor]) -> None:
    """Can the layers be multiplied?"""
    tokens = matrices[-1].shape[-1]
    for matrix in matrices[:-1]:
        if matrix.shape[-2:] != (tokens, tokens):
            raise UnreadableAttentionError(
                f"The attentions of this model look at different tokens ({matrix.shape[-2]} x {matrix.shape[-1]} "
                f"in one layer, "
                f"{tokens} tokens in the last), so their weights cannot be followed from layer to layer. Take "
                f"AttentionMap, "
                "which needs the last one only, or CDAM."
            )


def _row(run: TokenPass, weights: Tensor) -> Tensor:
    """The queries that are read, without those of padding, which nobody attends to."""
    queries, tokens = weights.shape[1:]
    row = rows_read(run, queries, tokens).to(weights)
    if queries == tokens and bool(((row > 0).sum(1) > 1).all()):
        row = row * (weights > 0).any(1)
    return row / row.sum(1, keepdim=True)
