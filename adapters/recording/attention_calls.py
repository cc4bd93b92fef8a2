"""Seeing attentions in a recording: a softmax of products of queries and keys that weights values."""

from dataclasses import dataclass

from torch.nn import functional as F

from .operation_names import ELEMENTWISE, FACTORS, LINEAR, MOVES, PRODUCTS, SOFTMAXES
from .operations import Operation, Slot
from .recorder import Recorder

_KEEPS_WEIGHTS = ELEMENTWISE | MOVES | LINEAR | frozenset(["normalize", "layer_norm", "batch_norm"])


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of a pass.

    Attributes:
        operation: The operation that weights the values: a fused attention or a product, of each element with its
            weight where the values are sampled at points of a map (deformable attention).
        softmax: The softmax of the weights; None where both are one operation.
        weights: The weights as they meet the values; None where both are one operation.
        value: The values.
        output: The weighted values.
        ordinal: Its number in time.
    """

    operation: Operation
    softmax: Operation | None
    weights: Slot | None
    value: Slot
    output: Slot
    ordinal: int

    @property
    def samples_points(self) -> bool:
        """Are values sampled at points that the queries choose, so that no weight belongs to a token?"""
        return self.operation.name in FACTORS


class AttentionFinder:
    """Told of all operations, finds the attentions among them.

    Attributes:
        calls: The attentions, in order.
        ends: The operations that end them, and those where constants weight values that are sampled at points, as for
            the queries of a decoder's first layer, which have seen nothing of the image.
    """

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.ends: set[Operation] = set()
        self._weights: dict[Slot, Operation] = {}  # what a softmax gave, scaled, masked or rearranged

    def found(self, recorder: Recorder, operation: Operation) -> AttentionCall | None:
        """The attention that ends with this operation."""
        if operation.func is F.scaled_dot_product_attention or operation.name in _FUSED:
            return self._add(operation, None, None, fused_operands(operation)[2])
        if operation.name in SOFTMAXES and len(recorder.shapes[operation.outputs[0]]) >= 3:
            self._weights[operation.outputs[0]] = operation
            return None
        weights = [slot for slot in operation.inputs if slot in self._weights]
        if not weights:
            if operation.name in FACTORS and any(_taken_at_points(recorder, slot) for slot in operation.inputs):
                self.ends.add(operation)
            return None
        values = self._weighted(recorder, operation)
        if values:
            return self._add(operation, self._weights[weights[0]], weights[0], values[-1])
        if operation.name in _KEEPS_WEIGHTS and not self._meets_others(recorder, operation):
            for slot in operation.outputs:
                self._weights[slot] = self._weights[weights[0]]
        return None

    def _weighted(self, recorder: Recorder, operation: Operation) -> list[Slot]:
        """The values that an operation weights: all in a product of matrices, or those of points in one of elements."""
        others = [slot for slot in operation.inputs if slot not in self._weights]
        if operation.name in FACTORS:
            return [slot for slot in others if _taken_at_points(recorder, slot)]
        return others if operation.name in PRODUCTS else []

    def _meets_others(self, recorder: Recorder, operation: Operation) -> bool:
        """Are weights multiplied with features, as gates are?"""
        return any(
            recorder.follows[slot]
            and slot not in self._weights
            and recorder.dtypes[slot].is_floating_point
            and len(recorder.shapes[slot]) >= 3
            for slot in operation.inputs
        )

    def _add(self, operation: Operation, softmax: Operation | None, weights: Slot | None, value: Slot) -> AttentionCall:
        call = AttentionCall(operation, softmax, weights, value, operation.outputs[0], len(self.calls))
        self.calls.append(call)
        self.ends.add(operation)
        return call


_FUSED = frozenset(["scaled_dot_product_attention"])


def _taken_at_points(recorder: Recorder, slot: Slot) -> bool:
    """Are these values of a map at points, between its places or by their rows and columns, then rearranged?"""
    while recorder.writers[slot]:
        operation = recorder.writers[slot][0]
        if samples_points(operation):
            return True
        if operation.name not in MOVES or operation.inputs[:1] in ((), (slot,)):
            return False
        slot = operation.inputs[0]
    return False


def samples_points(operation: Operation) -> bool:
    """Does it take values of a map at points, between its places or by their rows and columns?"""
    index = operation.args[1] if operation.name == "__getitem__" else ()
    return operation.name == "grid_sample" or (isinstance(index, tuple) and sum(isinstance(x, Slot) for x in index) > 1)


def fused_operands(operation: Operation) -> tuple[Slot, Slot, Slot]:
    """Queries, keys and values of a fused attention."""
    given = [
        *operation.args[:3],
        *(operation.kwargs[name] for name in ("query", "key", "value") if name in operation.kwargs),
    ]
    return given[0], given[1], given[2]


def query_of(recorder: Recorder, call: AttentionCall) -> Slot | None:
    """The queries: the first operand of the product that the weights come from."""
    if call.softmax is None:
        return fused_operands(call.operation)[0]
    product = product_before(recorder, call.softmax)
    return None if product is None else product.inputs[-2]


def key_of(recorder: Recorder, call: AttentionCall) -> Slot | None:
    """The keys: the last operand of the product that the weights come from."""
    if call.softmax is None:
        return fused_operands(call.operation)[1]
    product = product_before(recorder, call.softmax)
    return None if product is None else product.inputs[-1]


def product_before(recorder: Recorder, softmax: Operation) -> Operation | None:
    """The latest product from which a softmax is computed."""
    waiting, known, found = list(softmax.inputs), set(), []
    while waiting:
        slot = waiting.pop()
        for operation in recorder.writers[slot][:1]:
            if operation in known:
                continue
            known.add(operation)
            if operation.name in PRODUCTS and sum(recorder.follows[one] for one in operation.inputs) >= 1:
                found.append(operation)
            elif operation.name in _KEEPS_WEIGHTS and operation.name not in LINEAR:
                waiting.extend(operation.inputs)
    return max(found, key=lambda operation: operation.index, default=None)


def value_projections(recorder: Recorder, calls: list[AttentionCall], value: Slot) -> list[tuple[Operation, Slot]]:
    """The linear layers that values come from, each with the tensor it reads, the latest last; none without one."""
    attentions = {call.operation: call for call in calls}
    found = _projections(recorder, attentions, value) or {}
    return sorted(found.items(), key=lambda item: item[0].index)


def _projections(
    recorder: Recorder, attentions: dict[Operation, AttentionCall], slot: Slot
) -> dict[Operation, Slot] | None:
    """Back to the first linear layers; a sum counts only if all its parts are such layers' of the same tokens."""
    while recorder.writers[slot]:
        operation = recorder.writers[slot][0]
        if operation in attentions:
            slot = attentions[operation].value
            continue
        read = projected(recorder, operation)
        if read is not None:
            return {operation: read}
        followed = list(dict.fromkeys(one for one in operation.inputs if recorder.follows[one] and one != slot))
        if len(followed) > 1 and operation.name in _SUMS:
            parts = [_projections(recorder, attentions, one) for one in followed]
            if any(part is None for part in parts):
                return None
            found = {made: read for part in parts if part is not None for made, read in part.items()}
            places = {recorder.shapes[read][:-1] for read in found.values()}
            return found if len(places) == 1 else None
        if not followed:
            return None
        slot = followed[0]
    return None


_SUMS = frozenset(["add", "add_", "sub", "sub_", "cat", "concat", "stack", "__add__", "__iadd__"])


def projected(recorder: Recorder, operation: Operation) -> Slot | None:
    """What a linear layer reads; None for other operations, and for depthwise convolutions."""
    if operation.name in LINEAR:
        named = [operation.kwargs[name] for name in ("input", "mat1") if name in operation.kwargs]
        position = 1 if operation.name == "addmm" else 0
        read = operation.args[position] if len(operation.args) > position else named[0]
        weight = operation.kwargs.get("weight", operation.args[1] if len(operation.args) > 1 else None)
        if operation.name.startswith("conv") and isinstance(weight, Slot) and recorder.shapes[weight][1] == 1:
            return None  # each channel alone
        return read if isinstance(read, Slot) and recorder.follows[read] else None
    if operation.name in PRODUCTS:
        followed = [slot for slot in operation.inputs if recorder.follows[slot]]
        others = [slot for slot in operation.inputs if not recorder.follows[slot]]
        return followed[0] if len(followed) == 1 and others else None
    return None
