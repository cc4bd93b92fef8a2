"""The attention of each layer as a matrix that is read row by row, for maps that are made of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..models.outputs import OutputChoice
from .attention_calls import AttentionCall
from .attention_weights import UnreadableAttentionError, Weights, WrittenWeights, by_heads, fused, weights_of
from .continuation import NotReplayableError
from .prediction import DifferentOutputError, Prediction
from .recorder import Recorder
from .rows_read import rows_read
from .saved_tensors import is_of_views
from .token_pass import TokenPass

AT_ONCE = 2**22  # weights of all heads

Combine = Callable[[Tensor, Tensor], Tensor]
OnAttention = Callable[[Recorder, AttentionCall], None]
T = TypeVar("T")
Gradients = Callable[[Prediction, Sequence[GradientEdge | None]], Sequence[Tensor | None]]


@dataclass(frozen=True)
class LayerMatrix:
    """The mean over heads of the weights of one attention, (batch, queries, tokens), a few rows at a time.

    Or of what is made of the weights and their gradient.

    Attributes:
        weights: The attention's.
        batch: How many samples there are.
        combine: From the weights of some queries and their gradient, both (batch, heads, queries, tokens), what takes
            the weights' place, perhaps in the gradient's memory; None: the weights themselves.
        gradient: By the output of a fused attention, or by written weights; None: zero.
    """

    weights: Weights
    batch: int
    combine: Combine | None = None
    gradient: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the matrix."""
        return (self.batch, self.weights.shape[-2], self.weights.shape[-1])

    def rows(self, queries: Tensor) -> Tensor:
        """Those of some queries, (batch, heads, queries, tokens), in float32 or wider."""
        weights = _wide(by_heads(self.weights.of(queries), self.batch))
        if self.combine is None:
            return weights
        if self.gradient is None:
            return torch.zeros_like(weights)
        return self.combine(weights, _wide(by_heads(self.weights.gradient(self.gradient, queries), self.batch)))

    def after(self, row: Tensor) -> Tensor:
        """A row vector (batch, queries) times this matrix, (batch, tokens)."""
        result = row.new_zeros((self.batch, self.shape[2]))
        for queries in self._parts((row != 0).any(0).nonzero()[:, 0]):
            rows = self.rows(queries)
            result = result + (row[:, None, None, queries].to(rows.dtype) @ rows).mean(1)[:, 0]
        return result

    def attended(self) -> Tensor:
        """Which tokens have a weight above 0 for some query, (batch, tokens)."""
        parts = (by_heads(self.weights.of(queries), self.batch) > 0 for queries in self._parts())
        return torch.stack([part.any(2).any(1) for part in parts]).any(0)

    def smaller(self) -> "LayerMatrix":
        """The same with the mean over the heads written down, if that takes less room than what it is made of."""
        if math.prod(self.shape) > self.weights.room:
            return self
        means = torch.cat([self.rows(queries).mean(1) for queries in self._parts()], 1)
        return LayerMatrix(WrittenWeights(means[:, None]), self.batch)

    def _parts(self, queries: Tensor | None = None) -> Sequence[Tensor]:
        queries = torch.arange(self.shape[1], device=self.weights.device) if queries is None else queries
        return torch.split(queries, max(1, AT_ONCE * self.shape[1] // math.prod(self.weights.shape)))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class AttentionMatrices:
    """What the maps of attention weights are made of.

    Attributes:
        matrices: One of each layer, the last one last.
        row: Which queries of the last one are read, (batch, queries) with sum 1.
        run: The pass they come from.
    """

    matrices: list[LayerMatrix]
    row: Tensor
    run: TokenPass

    @property
    def pools(self) -> bool:
        """Does the last one pool, so that its queries are other than its tokens?"""
        return self.matrices[-1].shape[1] != self.matrices[-1].shape[2]


def mean_weights(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    followed: int,
    *,
    last_only: bool,
    output: OutputChoice = None,
    attention: str | None = None,
) -> AttentionMatrices:
    """The attention weights, means over the heads.

    Args:
        forward: The model, or any function that calls it.
        arguments: Its positional arguments.
        followed: How many of them are the inputs.
        last_only: Is the last layer enough?
        output: Which tensor of what the model returns is explained.
        attention: BY_QUERIES, or None for the last one.

    Raises:
        ValueError: if there is no attention, or one whose weights are no matrices of one set of tokens.
    """
    batch = len(arguments[0])
    found: dict[int, LayerMatrix | UnreadableAttentionError] = {}
    wanted: int | None = None

    def collect(recorder: Recorder, call: AttentionCall) -> None:
        if wanted in (None, call.ordinal):
            found[call.ordinal] = _mean(recorder, call, batch)

    def watch(on_attention: OnAttention | None) -> TokenPass:
        options: dict[str, Any] = {"followed": followed, "output": output, "attention": attention}
        return TokenPass(forward, arguments, on_attention=on_attention, **options)

    run = watch(None if last_only else collect)
    calls = _attentions_of(run, last_only=last_only)
    if last_only and run.reason is None:
        found[calls[0].ordinal] = LayerMatrix(_last_weights(run, calls[0]), batch)
    elif last_only:
        wanted = calls[0].ordinal
        run = watch(collect)
    matrices = _readable([found[call.ordinal] for call in calls])
    _check_fit(matrices, run)
    return AttentionMatrices(matrices, _row(run, matrices[-1]), run)


def weights_and_gradients(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    followed: int,
    gradients: Gradients,
    combine: Combine,
    *,
    last_only: bool,
    latent: bool | nn.Module = False,
    output: OutputChoice = None,
    attention: str | None = None,
) -> AttentionMatrices:
    """Matrices of the attention weights and their gradients.

    Args:
        forward: As above.
        arguments: As above.
        followed: As above.
        gradients: From what the model returned, and from where each attention is in its graph (None: nowhere), the
            gradients there.
        combine: From weights and gradient (batch, heads, queries, tokens) what takes the weights' place.
        last_only: As above.
        latent: Is what the head reads wanted?
        output: As above.
        attention: As above.
    """
    options: dict[str, Any] = {"followed": followed, "latent": latent, "output": output, "attention": attention}
    found = _repeated_last(TokenPass(forward, arguments, **options)) if last_only else None
    if found is None:
        found = _watched_with_graph(forward, arguments, last_only=last_only, **options)
    plain = [LayerMatrix(one, found.run.batch) for one in found.weights]
    _check_fit(plain, found.run)
    by_output = gradients(found.prediction, [*found.edges, *found.others])
    by_others = by_output[len(found.edges) :]
    if any(by is not None and bool((by != 0).any()) for by in by_others):
        raise UnreadableAttentionError(
            "The output depends on an attention in a way that cannot be seen, so that its layers are not known. Take "
            "CDAM, which needs no attention weights."
        )
    matrices = [replace(one, combine=combine, gradient=by) for one, by in zip(plain, by_output, strict=False)]
    with torch.no_grad():
        return AttentionMatrices(matrices, _row(found.run, plain[-1]), found.run)


class _InGraph(NamedTuple):
    """Attentions, and a prediction with its graph.

    Attributes:
        run: The pass.
        prediction: What the model returned.
        weights: Of each attention.
        edges: Where the graph has the output of a fused attention, or the weights that are written.
        others: The same of attentions on which the output must not depend.
    """

    run: TokenPass
    prediction: Prediction
    weights: list[Weights]
    edges: list[GradientEdge | None]
    others: Sequence[GradientEdge | None] = ()


def _watched_with_graph(
    forward: Callable[..., Any], arguments: tuple[Any, ...], *, last_only: bool, **options: Any
) -> _InGraph:
    """From one pass, of which the graph is kept from the first attention on."""
    kept: dict[int, tuple[Weights | UnreadableAttentionError, GradientEdge | None]] = {}

    def collect(recorder: Recorder, call: AttentionCall) -> None:
        kept[call.ordinal] = _weights_or_error(recorder, call), (call.softmax or call.operation).edge

    try:
        run = TokenPass(forward, arguments, on_attention=collect, graph=True, **options)
    except RuntimeError as error:
        if not is_of_views(error):
            raise
        raise UnreadableAttentionError(
            "The model changes tokens in place (as by `x += attention(x)`), so that the gradients of its attentions "
            "cannot be taken. Write `x = x + attention(x)` in its code, or take CDAM or AttentionRollout."
        ) from error
    calls = _attentions_of(run, last_only=last_only)
    known = {call.ordinal for call in run.attentions()}
    others = [edge for ordinal, (_, edge) in kept.items() if ordinal not in known]
    found = [kept[call.ordinal] for call in calls]
    read: list[Weights | UnreadableAttentionError] = [one for one, _ in found]
    return _InGraph(run, run.prediction, _readable(read), [edge for _, edge in found], others)


def _repeated_last(run: TokenPass) -> _InGraph | None:
    """The last attention with its prediction, from repeating what follows the tokens; None if that cannot be done."""
    if run.reason is not None:
        return None
    (call,) = _attentions_of(run, last_only=True)
    edges: list[GradientEdge | None] = []
    weights: list[Weights] = []

    def start(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = func(*args, **kwargs).detach()
        weights.append(fused(args, kwargs) if call.softmax is None else WrittenWeights(made))
        if torch.is_grad_enabled():  # and not where the model's own code forbids it
            made = made.requires_grad_().clone()
        edges.append(get_gradient_edge(made) if made.requires_grad else None)
        return made

    try:
        with torch.enable_grad():
            prediction = run.replayed(run.tokens, {(call.softmax or call.operation).call: start})
        run.check(prediction)
    except (NotReplayableError, DifferentOutputError):
        return None
    return _InGraph(run, prediction, weights, edges)


def _last_weights(run: TokenPass, call: AttentionCall) -> Weights:
    """Those of the attention that the tokens enter."""
    if call.softmax is not None:
        return WrittenWeights(run.values(list(call.softmax.outputs[:1]), call.softmax.index + 1)[0])
    return fused(*run.arguments_of(call.operation))


@torch.no_grad()
def _mean(recorder: Recorder, call: AttentionCall, batch: int) -> LayerMatrix | UnreadableAttentionError:
    """The mean over the heads, written down where that takes less room than what it is made of."""
    weights = _weights_or_error(recorder, call)
    if isinstance(weights, UnreadableAttentionError):
        return weights
    try:
        by_heads(torch.empty(weights.shape, device="meta"), batch)
    except UnreadableAttentionError as error:
        return error
    return LayerMatrix(weights, batch).smaller()


def _weights_or_error(recorder: Recorder, call: AttentionCall) -> Weights | UnreadableAttentionError:
    """Whether the map needs them is known later."""
    try:
        return weights_of(call, recorder.tensor)
    except UnreadableAttentionError as error:
        return error


def _readable(found: Sequence[T | UnreadableAttentionError]) -> list[T]:
    for one in found:
        if isinstance(one, UnreadableAttentionError):
            raise one
    return [one for one in found if not isinstance(one, UnreadableAttentionError)]


def _attentions_of(run: TokenPass, *, last_only: bool) -> list[AttentionCall]:
    calls = run.attentions()[-1 if last_only else 0 :]
    if not calls:
        raise UnreadableAttentionError("It is not seen through which attentions the output is reached.")
    if any(call.samples_points for call in calls):
        raise UnreadableAttentionError(
            "An attention of this model samples values at points between the tokens (deformable attention), so that "
            "its weights are no matrix of queries and tokens. Take CDAM, which needs no attention weights."
        )
    return calls


def _check_fit(matrices: list[LayerMatrix], run: TokenPass) -> None:
    """Is there a key for each token, and can the layers be multiplied?"""
    for matrix in matrices:
        by_heads(torch.empty(matrix.weights.shape, device="meta"), run.batch)
    tokens = matrices[-1].shape[-1]
    if tokens != run.count:
        raise UnreadableAttentionError(
            f"The last attention has weights of shape {matrices[-1].weights.shape} for {run.count} tokens: it looks at "
            "parts of them alone, or pools them. Take CDAM, which needs no attention weights."
        )
    if len(matrices) > 1 and run.watched.beside:
        raise UnreadableAttentionError(
            f"Not all attentions of this model lead to the last one, {len(run.watched.beside)} do not (an ensemble, "
            "several views or branches), so weights cannot be followed from layer to layer. Take AttentionMap or CDAM, "
            "which explain the last one only, or explain one of these parts alone."
        )
    for _, *shape in (matrix.shape for matrix in matrices[:-1]):
        if shape != [tokens, tokens]:
            raise UnreadableAttentionError(
                f"The attentions of this model look at different tokens ({shape[0]} x {shape[1]} in one layer, "
                f"{tokens} tokens in the last), so their weights cannot be followed from layer to layer. Take "
                "AttentionMap, which needs the last one only, or CDAM."
            )


def _row(run: TokenPass, matrix: LayerMatrix) -> Tensor:
    """The queries that are read, without those of padding, which nobody attends to."""
    _, queries, tokens = matrix.shape
    row = rows_read(run, queries, tokens)
    if queries == tokens and bool(((row > 0).sum(1) > 1).all()):
        row = row * matrix.attended()
    return row / row.sum(1, keepdim=True)
