"""How keys and values are projected from the tokens, by running numbers through the recorded operations."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .continuation import Continuation, autocast_of, repeated, substituted, tensors_in
from .operation_names import MOVES
from .operations import NotInClosedFormError, Operation, Slot
from .recorder import Recorder
from .token_pass import TokenPass

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


def projection_of(run: TokenPass, slot: Slot, *, allow_turn: bool) -> Projection:
    """The linear layer that makes keys or values, and what follows it.

    Args:
        run: The pass.
        slot: The keys or values as they enter the attention.
        allow_turn: May they be changed after the layer, as by rotary embeddings?

    Raises:
        NotInClosedFormError: if there is no such layer.
    """
    found, recorder = run.continuation, run.watched.recorder
    chain = between(found, slot)
    linear = next((op for op in chain if op.name in ("linear", "addmm")), None)
    if linear is None:
        raise NotInClosedFormError("keys or values are not made by a linear layer")
    place = chain.index(linear)
    before, after = chain[:place], chain[place + 1 :]
    if any(op.name not in MOVES for op in before):
        raise NotInClosedFormError("the tokens are changed before the layer that projects them")
    moves, here = _moves(after, linear.outputs[0], slot)
    rest = after[len(moves) :]
    if rest and not allow_turn:
        raise NotInClosedFormError("values are changed after the layer that projects them")
    features, token_axis = _features(recorder, run, [*before, linear, *moves], here)
    if token_axis == 1 and not rest:
        raise NotInClosedFormError("the heads do not lie in front of the tokens")
    weight, bias = _weights(linear, found.externals)
    turn = None
    if rest:
        turn = functools.partial(_turned, recorder, found.externals, rest, here, slot, token_axis, run.batch)
    return Projection(
        _rows(weight, features).view(*features.shape, -1),
        None if bias is None else _rows(bias, features).view(features.shape),
        turn,
        _is_linear(rest, here) and not _rounds(recorder, rest, here),
    )


def _moves(operations: list[Operation], here: Slot, wanted: Slot) -> tuple[list[Operation], Slot]:
    """The first operations, as far as they only rearrange the features and nothing else reads these; the result."""
    moves: list[Operation] = []
    while len(moves) < len(operations):
        operation, later = operations[len(moves)], operations[len(moves) + 1 :]
        following = [s for s in operation.outputs if s == wanted or any(s in op.inputs for op in later)]
        moved = operation.name in MOVES and operation.inputs == (here,)
        if not moved or len(following) != 1 or any(here in op.inputs for op in later):
            break
        here = following[0]
        moves.append(operation)
    return moves, here


def between(found: Continuation, *slots: Slot) -> list[Operation]:
    """The operations by which the tokens lead to some tensors, in order."""
    wanted, chain = set(slots), []
    for operation in reversed(found.operations):
        if not wanted.isdisjoint(operation.outputs):
            chain.append(operation)
            wanted.update(s for s in operation.inputs if s in found.dependent)
    return chain[::-1]


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


def _rounds(recorder: Recorder, chain: list[Operation], start: Slot) -> bool:
    """Is something computed with fewer bits than what it is made of has? Then rounding is a part of it."""
    bits = torch.finfo(recorder.dtypes[start]).bits
    made = (recorder.dtypes[slot] for operation in chain for slot in operation.outputs)
    return any(dtype.is_floating_point and torch.finfo(dtype).bits < bits for dtype in made)


def _is_linear(chain: list[Operation], start: Slot) -> bool:
    """Is each operation linear in what depends on the tokens?"""
    dependent = {start}
    for operation in chain:
        reads = [slot for slot in operation.inputs if slot in dependent]
        numbers = [x for x in operation.args if isinstance(x, int | float) and not isinstance(x, Slot)]
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
