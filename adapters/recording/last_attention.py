"""A model's last attention taken apart: its projections, and what follows it for the rows that the output reads."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_calls import fused_operands, product_before
from .continuation import Continuation, autocast_of, repeated, substituted, tensors_in
from .operation_names import MOVES
from .recorder import Operation, Recorder, Slot
from .rows import MOST_ROWS, Axis, NotInClosedFormError, RowPlan, rows_of
from .token_pass import Readout, TokenPass

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """A linear map of tokens to features of each head.

    Attributes:
        weight: (heads, width, channels).
        bias: (heads, width), or None.
        turn: What happens to the features (samples, heads, tokens, width) after it; None: nothing.
        turn_is_linear: Is that linear in the features?
    """

    weight: Tensor
    bias: Tensor | None
    turn: Turn | None = None
    turn_is_linear: bool = True

    @property
    def heads(self) -> int:
        """Their number."""
        return self.weight.shape[0]

    def of(self, tokens: Tensor) -> Tensor:
        """The features of tokens, without the bias and before the turn, (samples, heads, tokens, width)."""
        features = torch.nn.functional.linear(tokens, self.weight.flatten(0, 1))
        return features.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class LastAttention:
    """A softmax attention of which everything is known that a closed form needs.

    `output = softmax(scale * query . turn_key(key) + mask) value`, of which the model's output reads some rows only.

    Args:
        run: The pass.

    Attributes:
        tokens: (batch, tokens, channels).
        picked_queries: Which queries the output reads: numbers, or a tensor with one for each sample; None: all.
        query_rows: How many.
        rows: Which tokens' queries are read: numbers, or a tensor with one for each sample.
        key: The keys' projection.
        value: The values' projection.
        heads: Number of heads.
        scale: Factor of the products.
        mask: Added to the products of these rows, broadcasting to (batch, heads, rows, tokens), or None.

    Raises:
        NotInClosedFormError: if the model or this call of it is another one.
    """

    def __init__(self, run: TokenPass) -> None:
        found = run.continuation
        if run.reason is not None:
            raise NotInClosedFormError(run.reason)
        if any(not op.differentiable or op.name in _CUTS for op in found.operations):
            raise NotInClosedFormError("gradients are cut behind the tokens (torch.no_grad or detach)")
        if found.attention is None:
            raise NotInClosedFormError("the tokens do not enter an attention by the layer that was given")
        tokens = run.tokens
        if tokens.dim() != 3 or run.channels != 2:
            raise NotInClosedFormError("the tokens are not one sequence for each sample")
        self.run, self.tokens = run, tokens.detach()
        self._recorder: Recorder = run.watched.recorder
        self._found: Continuation = found
        self._batch, self._count, _ = tokens.shape
        parts = _operands(self._recorder, found)
        query, key, value, core = parts
        self._core = core
        self.value = self._projection(value, allow_turn=False)
        self.key = self._projection(key, allow_turn=True)
        self._query, self._output = query, found.attention.output
        self.heads = self._recorder.shapes[self._output][1]
        self._plan_rows()
        self.scale, self.mask = self._scale_and_mask()

    # Taking apart

    def _projection(self, slot: Slot, *, allow_turn: bool) -> Projection:
        chain = _between(self._found, self._recorder, slot)
        linear = next((op for op in chain if op.name in ("linear", "addmm")), None)
        if linear is None:
            raise NotInClosedFormError("keys or values are not made by a linear layer")
        place = chain.index(linear)
        after = chain[place + 1 :]
        before = [op for op in chain[:place] if op.name in MOVES]
        if len(before) != place or any(op.name not in MOVES for op in before):
            raise NotInClosedFormError("the tokens are changed before the layer that projects them")
        moved = 0
        here = linear.outputs[0]
        while moved < len(after) and after[moved].name in MOVES and after[moved].inputs == (here,):
            operation = after[moved]
            following = [s for s in operation.outputs if s == slot or any(s in op.inputs for op in after[moved + 1 :])]
            if len(following) != 1 or any(here in op.inputs for op in after[moved + 1 :]):
                break
            here = following[0]
            moved += 1
        if moved < len(after) and not allow_turn:
            raise NotInClosedFormError("values are changed after the layer that projects them")
        features, token_axis = _features(self._recorder, self.run, [*before, linear, *after[:moved]], here)
        weight, bias = _weights(linear, self._found.externals)
        rest = after[moved:]
        turn = None
        if rest:
            turn = functools.partial(
                _turned, self._recorder, self._found.externals, rest, here, slot, token_axis, self._batch
            )
        if token_axis == 1 and features.dim() == 2 and not rest:
            raise NotInClosedFormError("the heads do not lie in front of the tokens")
        return Projection(
            _rows(weight, features).view(*features.shape, -1),
            None if bias is None else _rows(bias, features).view(features.shape),
            turn,
            _is_linear(rest, self._recorder, here),
        )

    def _plan_rows(self) -> None:
        found, recorder = self._found, self._recorder
        attention = found.attention
        assert attention is not None  # noqa: S101
        token_axis = Axis(1 if self.run.layout.axis == 0 else 0)
        queries = recorder.shapes[self._query]
        before = {*self._core, *_between(found, recorder, self._query)}
        leads = _leading(found, set(attention.operation.inputs))
        after = [
            op for op in found.operations if op not in leads and op is not attention.operation and op not in before
        ]
        chain = [op for op in found.operations if op in set(_between(found, recorder, self._query))]
        externals = {**found.externals}
        self._query_plan: RowPlan | None = None
        self._given_query: Tensor | None = None
        tied = False
        if self._query in found.dependent:
            self._query_plan = RowPlan(recorder, chain, {found.slot: token_axis}, self._count, externals)
            tied = self._query_plan.axes[self._query] == Axis(2)
            if not tied and self._query_plan.axes[self._query] is not None:
                raise NotInClosedFormError("queries of several tokens lie on one axis")
            if tied and self._query_plan.picked is not None:
                raise NotInClosedFormError("queries are made of some tokens")
        else:
            self._given_query = found.externals.get(self._query)
            if self._given_query is None:
                raise NotInClosedFormError("queries were not kept")
        start: dict[Slot, Axis | None] = {self._output: Axis(2) if queries[2] > 1 else None}
        direct = any(found.reads_tokens(op) for op in after)
        if direct and not tied:
            raise NotInClosedFormError("the tokens are read beside the attention")
        start[found.slot] = token_axis if direct else None
        if not direct:
            del start[found.slot]
        self._after = RowPlan(recorder, after, start, queries[2], externals)
        wanted = self._wanted()
        if any(slot not in self._after.axes and slot not in externals for slot in wanted):
            raise NotInClosedFormError("what is explained is made before the attention")
        for slot in wanted:
            axis = self._after.axes.get(slot)
            if axis is not None and axis.stop is None:
                raise NotInClosedFormError("the output reads all tokens")
            self._after.settle(slot)
        picked = self._after.picked
        if picked is None and queries[2] > MOST_ROWS:
            raise NotInClosedFormError("the output reads all tokens")
        self.picked_queries = picked
        self.query_rows = _number_of(picked, queries[2])
        self.direct = direct
        if self._query_plan is None:
            self.rows: list[int] | Tensor = [0]
        elif tied:
            self.rows = picked if picked is not None else list(range(queries[2]))
        else:
            rows = self._query_plan.picked
            if rows is None:
                raise NotInClosedFormError("queries are made of all tokens")
            self.rows = rows
        self._tied = tied

    def _scale_and_mask(self) -> tuple[float, Tensor | None]:
        attention = self._found.attention
        assert attention is not None  # noqa: S101
        operation = attention.operation
        if attention.softmax is None:
            return self._fused_scale_and_mask(operation)
        product = self._core[0]
        chain = self._core[1 : self._core.index(attention.softmax)]
        softmax = attention.softmax
        axis = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else -1)
        if axis not in (-1, 3):
            raise NotInClosedFormError("the weights are not normalised over the tokens")
        shape = self._recorder.shapes[product.outputs[0]]
        plan = RowPlan(self._recorder, chain, {product.outputs[0]: Axis(2)}, shape[2], self._found.externals)
        if plan.picked is not None:
            raise NotInClosedFormError("products are picked before the softmax")
        last = softmax.inputs[0]
        rows = self.picked_queries
        small = [*shape]
        small[2] = self.query_rows
        like = self.tokens.new_empty(0, dtype=self._recorder.dtypes[product.outputs[0]])

        def at(value: float) -> Tensor:
            (found,) = plan.run({product.outputs[0]: like.new_full(small, value)}, rows, [last])
            return found

        with torch.no_grad():
            zero, one, two = (at(v).double() for v in (0.0, 1.0, 2.0))
        finite = torch.isfinite(zero)
        if not bool(finite.any()):
            raise NotInClosedFormError("every product is masked")
        slopes, more = (one - zero)[finite], (two - one)[finite]
        seen = zero[finite].abs() < 1e3
        if not bool(seen.any()):
            raise NotInClosedFormError("every product is masked")
        slopes, more = slopes[seen], more[seen]
        scale = float(slopes[0])
        eps = torch.finfo(self._recorder.dtypes[product.outputs[0]]).eps ** 0.5
        if bool(((slopes - scale).abs() > eps * abs(scale)).any()) or bool(
            ((more - scale).abs() > eps * abs(scale)).any()
        ):
            raise NotInClosedFormError("the products are changed by more than a factor and a mask before the softmax")
        mask = at(0.0)
        return scale, None if not bool((mask != 0).any()) else mask

    def _fused_scale_and_mask(self, operation: Operation) -> tuple[float, Tensor | None]:
        given = dict(zip(("attn_mask", "dropout_p", "is_causal"), operation.args[3:], strict=False)) | operation.kwargs
        scale = given.get("scale")
        if scale is None:
            scale = self._recorder.shapes[self._query][-1] ** -0.5
        queries = self._recorder.shapes[self._query][2]
        mask = None
        if isinstance(given.get("attn_mask"), Slot):
            if given["attn_mask"] in self._found.dependent:
                raise NotInClosedFormError("the attention's mask depends on the tokens")
            mask = self._found.externals[given["attn_mask"]]
            if mask.dtype is torch.bool:
                mask = torch.zeros_like(mask, dtype=self.tokens.dtype).masked_fill_(~mask, -float("inf"))
        if given.get("is_causal"):
            mask = self.tokens.new_full((queries, self._count), -float("inf")).triu_(1)
        if mask is None:
            return float(scale), None
        while mask.dim() < 4:
            mask = mask[None]
        if self.picked_queries is not None and mask.shape[2] > 1:
            mask = rows_of(mask, 2, self.picked_queries)
        return float(scale), mask

    # Going on from the attention

    def own_rows(self, tokens: Tensor) -> Tensor:
        """The rows of tokens (..., tokens, channels) that the queries and what follows read."""
        return rows_of(tokens, 1, self.rows)

    def query(self, rows: Tensor) -> Tensor:
        """The queries (copies * batch, heads, rows, width) of these rows of tokens (copies * batch, rows, channels)."""
        copies = len(rows) // self._batch
        if self._query_plan is None:
            assert self._given_query is not None  # noqa: S101
            query = self._given_query
            query = query if self.picked_queries is None else rows_of(query, 2, self.picked_queries)
            if query.shape[0] != self._batch:
                query = query.expand(self._batch, -1, -1, -1)
            return query.repeat(copies, 1, 1, 1)
        plan = self._query_plan
        found: Tensor = self._of_copies(
            lambda own: plan.run({self._found.slot: self._natural(own)}, self.rows, [self._query])[0], copies, rows
        )
        return found

    def read(self, attended: Tensor, rows: Tensor) -> Readout:
        """What the model returns.

        Args:
            attended: The attention's output for the rows, (copies * batch, heads, rows, width).
            rows: The same rows of the tokens, (copies * batch, rows, channels).
        """
        copies = len(rows) // self._batch
        wanted = self._wanted()

        def follow(of_attention: Tensor, own: Tensor) -> tuple[Tensor, ...]:
            given = {self._output: of_attention.to(self._recorder.dtypes[self._output])}
            if self.direct:
                given[self._found.slot] = self._natural(own)
            known = {slot: self._found.externals[slot] for slot in wanted if slot not in self._after.axes}
            return tuple(self._after.run({**known, **given}, self.picked_queries, wanted))

        found = self._of_copies(follow, copies, attended, rows)
        return Readout(found[0], found[-1])

    def _wanted(self) -> list[Slot]:
        """The slots of the output and of the latent, if that is wanted."""
        return [slot for slot in (self.run.watched.output_slot, self.run.watched.latent_slot) if slot is not None]

    def _natural(self, rows: Tensor) -> Tensor:
        return rows if self.run.layout.axis == 0 else rows.transpose(0, 1)

    def _of_copies(self, function: Callable[..., Any], copies: int, *tensors: Tensor) -> Any:
        """A function of one batch for several, each by itself: samples of different copies do not meet."""
        allowed = torch.set_grad_enabled(torch.is_grad_enabled())
        with torch.inference_mode(False), allowed:
            if copies == 1:
                return function(*tensors)
            many = [x.unflatten(0, (copies, self._batch)) for x in tensors]
            try:
                found = torch.vmap(function)(*many)
            except (RuntimeError, NotImplementedError) as error:
                raise NotInClosedFormError(
                    f"what follows the attention cannot be run for several copies: {error}"
                ) from error
        if isinstance(found, Tensor):
            return found.flatten(0, 1)
        return tuple(x.flatten(0, 1) for x in found)


def _number_of(picked: list[int] | Tensor | None, queries: int) -> int:
    if picked is None:
        return queries
    return 1 if isinstance(picked, Tensor) else len(picked)


def _operands(recorder: Recorder, found: Continuation) -> tuple[Slot, Slot, Slot, list[Operation]]:
    """Queries, keys and values, and the operations from their products to the weighted values."""
    attention = found.attention
    assert attention is not None  # noqa: S101
    operation = attention.operation
    if len(recorder.shapes[attention.output]) != 4:
        raise NotInClosedFormError("the attention's output is not (batch, heads, tokens, width)")
    if attention.softmax is None:
        query, key, value = fused_operands(operation)
        return query, key, value, [operation]
    product = product_before(recorder, attention.softmax)
    if (
        product is None
        or product.name not in ("matmul", "__matmul__")
        or operation.name not in ("matmul", "__matmul__")
    ):
        raise NotInClosedFormError("the attention's products are not matrix products of queries and keys")
    if len(product.inputs) != 2 or operation.inputs != (attention.weights, attention.value):
        raise NotInClosedFormError("the attention's products are not matrix products of queries and keys")
    query, turned = product.inputs
    key = _transposed(recorder, turned)
    core = [op for op in found.operations if product.index <= op.index <= operation.index and op is not product]
    reach = {product.outputs[0]}
    kept = [product]
    for op in core:
        if reach.isdisjoint(op.inputs):
            continue
        others = [s for s in op.inputs if s in found.dependent and s not in reach and s != attention.value]
        if others:
            raise NotInClosedFormError("something that depends on the tokens is added to the products")
        if op not in (operation, attention.softmax) and op.name not in _AFFINE:
            raise NotInClosedFormError(f"the attention's weights are changed by `{op.name}`")
        if op.index > attention.softmax.index and op is not operation and op.name not in _NOTHING:
            raise NotInClosedFormError(f"the attention's weights are changed by `{op.name}`")
        made = recorder.dtypes[op.outputs[0]]
        if made.is_floating_point and torch.finfo(made).bits < torch.finfo(recorder.dtypes[found.slot]).bits:
            raise NotInClosedFormError(f"the attention's weights are rounded to {made}")
        reach.update(op.outputs)
        kept.append(op)
    if attention.softmax not in kept:
        raise NotInClosedFormError("the attention's products are not matrix products of queries and keys")
    if len(recorder.shapes[product.outputs[0]]) != 4:
        raise NotInClosedFormError("the attention's products are not (batch, heads, tokens, tokens)")
    return query, key, attention.value, kept


_CUTS = frozenset(["detach", "detach_", "data"])
_AFFINE = frozenset(
    [
        *("mul", "mul_", "multiply", "div", "div_", "true_divide", "add", "add_", "sub", "sub_", "subtract"),
        *("masked_fill", "masked_fill_", "where", "dropout", "to", "type", "type_as", "float", "half", "bfloat16"),
        *("double", "contiguous", "clone"),
    ]
)
"""What may happen to products on the way to the softmax; that it is a factor and a mask is tried besides."""
_NOTHING = frozenset(["dropout", "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone"])


def _transposed(recorder: Recorder, slot: Slot) -> Slot:
    writers = recorder.writers[slot]
    operation = writers[0] if writers else None
    if operation is not None and operation.name in ("transpose", "mT", "swapaxes") and len(recorder.shapes[slot]) == 4:
        dims = {int(d) % 4 for d in operation.args[1:3] if isinstance(d, int)} if operation.name != "mT" else {2, 3}
        if dims == {2, 3}:
            return operation.inputs[0]
    raise NotInClosedFormError("keys are not transposed by the last two axes")


def _between(found: Continuation, recorder: Recorder, slot: Slot) -> list[Operation]:
    """The operations by which the tokens lead to a tensor, in order."""
    wanted, chain = {slot}, []
    for operation in reversed(found.operations):
        if not wanted.isdisjoint(operation.outputs):
            chain.append(operation)
            wanted.update(s for s in operation.inputs if s in found.dependent)
    return chain[::-1]


def _leading(found: Continuation, slots: set[Slot]) -> set[Operation]:
    """The operations that lead to some tensors."""
    wanted, leading = set(slots), set()
    for operation in reversed(found.operations):
        if not wanted.isdisjoint(operation.outputs):
            leading.add(operation)
            wanted.update(s for s in operation.inputs if s in found.dependent)
    return leading


def _weights(linear: Operation, externals: dict[Slot, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight (features, channels) and bias of a linear layer."""
    if linear.name == "linear":
        names = ("input", "weight", "bias")
        given = dict(zip(names, linear.args, strict=False)) | linear.kwargs
        weight, bias = given["weight"], given.get("bias")
    else:
        if linear.kwargs or len(linear.args) != 3:
            raise NotInClosedFormError("a linear layer has factors of its own")
        bias, weight = linear.args[0], linear.args[2]
    if weight not in externals or (bias is not None and bias not in externals):
        raise NotInClosedFormError("a linear layer's weight depends on the tokens")
    matrix = externals[weight]
    return (matrix if linear.name == "linear" else matrix.T), None if bias is None else externals[bias]


def _rows(tensor: Tensor, features: Tensor) -> Tensor:
    """The rows of these numbers, as a view if they follow one another."""
    numbers = features.flatten()
    first = int(numbers[0])
    if torch.equal(numbers, torch.arange(first, first + len(numbers))):
        return tensor[first : first + len(numbers)]
    return tensor[numbers.to(tensor.device)]


_known_features: dict[Any, tuple[Tensor, int]] = {}
_MOST_KNOWN = 256


def _features(recorder: Recorder, run: TokenPass, chain: list[Operation], slot: Slot) -> tuple[Tensor, int]:
    """Which feature of the linear layer each element of each head is, (heads, width), and the axis of the tokens.

    Numbers run through the operations instead of values. That depends on the operations and their arguments only, by
    which it is remembered.
    """
    key = (
        tuple((op.func, repr(op.args), repr(op.kwargs), recorder.shapes[op.outputs[0]]) for op in chain),
        recorder.shapes[run.slot],
        run.layout.axis,
        slot,
    )
    if key not in _known_features:
        if len(_known_features) >= _MOST_KNOWN:
            _known_features.clear()
        _known_features[key] = _trace_features(recorder, run, chain, slot)
    return _known_features[key]


def _trace_features(recorder: Recorder, run: TokenPass, chain: list[Operation], slot: Slot) -> tuple[Tensor, int]:
    batch, count, channels = run.tokens.shape
    shape = recorder.shapes[run.slot]
    codes = torch.arange(batch * count, dtype=torch.int32).view(batch, count, 1)
    places = codes.movedim(0, run.layout.axis).expand(shape)
    numbers = torch.arange(channels, dtype=torch.int32).expand(shape)
    linear = next(op for op in chain if op.name in ("linear", "addmm"))
    before, after = chain[: chain.index(linear)], chain[chain.index(linear) + 1 :]
    read = linear.args[1] if linear.name == "addmm" else linear.args[0] if linear.args else linear.kwargs["input"]
    places, numbers = (_move(before, run.slot, x, read) for x in (places, numbers))
    if not torch.equal(numbers, torch.arange(channels, dtype=torch.int32).expand(numbers.shape)):
        raise NotInClosedFormError("the channels are rearranged before the layer that projects them")
    made = recorder.shapes[linear.outputs[0]]
    places = _move(after, linear.outputs[0], places[..., :1].expand(made), slot)
    numbers = _move(after, linear.outputs[0], torch.arange(made[-1], dtype=torch.int32).expand(made), slot)
    if numbers.dim() == 3:
        numbers, places = numbers[:, None], places[:, None]
    if numbers.dim() != 4:
        raise NotInClosedFormError("keys or values are not (batch, heads, tokens, width)")
    for axis in (2, 1):
        features = numbers.select(axis, 0)[0]
        expected = codes.view(batch, 1, count, 1) if axis == 2 else codes.view(batch, count, 1, 1)
        if numbers.shape[axis] != count or not torch.equal(places, expected.expand_as(places)):
            continue
        spread = features.unsqueeze(axis - 1)[None]
        if torch.equal(numbers, spread.expand_as(numbers)):
            return features.long(), axis
    raise NotInClosedFormError("keys or values are not (batch, heads, tokens, width)")


def _move(chain: list[Operation], start: Slot, values: Tensor, wanted: Slot) -> Tensor:
    known = {start: values}

    def value(slot: Slot) -> Tensor:
        if slot not in known:
            raise NotInClosedFormError("features of several layers are put together")
        return known[slot]

    for operation in chain:
        if operation.name in ("to", "type_as", "float", "half", "bfloat16", "double", "dropout"):
            results = [value(operation.inputs[0])]
        else:
            args, kwargs = substituted((operation.args, operation.kwargs), value)
            results = tensors_in(repeated(operation, args, kwargs))
        known.update(zip(operation.outputs, results, strict=True))
    return known[wanted]


def _turned(
    recorder: Recorder,
    externals: dict[Slot, Tensor],
    chain: list[Operation],
    start: Slot,
    wanted: Slot,
    token_axis: int,
    batch: int,
    features: Tensor,
) -> Tensor:
    """What happens to features (copies * batch, heads, tokens, width) behind their projection."""

    def one(x: Tensor) -> Tensor:
        x = x if token_axis == 2 else x.transpose(1, 2)
        values = {**externals, start: x.reshape(recorder.shapes[start]).to(recorder.dtypes[start])}
        for operation in chain:
            args, kwargs = substituted((operation.args, operation.kwargs), lambda slot: values[slot])
            with autocast_of(operation, recorder):
                result = repeated(operation, args, kwargs)
            values.update(zip(operation.outputs, tensors_in(result), strict=True))
        return values[wanted]

    copies = len(features) // batch
    if copies == 1:
        return one(features)
    try:
        return torch.vmap(one)(features.unflatten(0, (copies, batch))).flatten(0, 1)
    except (RuntimeError, NotImplementedError) as error:
        raise NotInClosedFormError(f"keys cannot be computed for several copies: {error}") from error


def _is_linear(chain: list[Operation], recorder: Recorder, start: Slot) -> bool:
    """Is each operation linear in what depends on the tokens?"""
    dependent = {start}
    for operation in chain:
        reads = [slot for slot in operation.inputs if slot in dependent]
        numbers = [x for x in operation.args if isinstance(x, int | float)]
        if operation.name in ("mul", "mul_", "multiply", "div", "div_", "true_divide"):
            right = len(reads) == 1 and (
                not operation.name.startswith(("div", "true")) or operation.args[0] == reads[0]
            )
        elif operation.name in ("add", "add_", "sub", "cat", "stack"):
            right = len(reads) == len(operation.inputs) and (operation.name in ("cat", "stack") or not numbers)
        else:
            right = operation.name in ("neg", "negative") or (
                operation.name in MOVES and operation.name not in ("pad",) and len(operation.inputs) == 1
            )
        if not right:
            return False
        dependent.update(operation.outputs)
    return True
