"""What may be an attention that is not known as one: weights made of tokens that meet tokens again."""

import math

from .attention_calls import AttentionCall
from .beside import operations_leading_to
from .operation_names import FACTORS, LINEAR, PRODUCTS
from .operations import Operation, Slot
from .recorder import Recorder


def attention_behind(recorder: Recorder, last: AttentionCall, tokens: Slot, output: Slot) -> Operation | None:
    """The last operation between an attention and the output that weights tokens by products of tokens, if any.

    So do attentions without a softmax, and those whose weights are changed behind it in a way that is not followed, as
    where the largest are chosen. Gates and pooling do not: their weights come from a linear layer, not from a product;
    nor does what multiplies the parts of each token among themselves.
    """
    count = math.prod(recorder.shapes[tokens][1:-1])
    behind = operations_leading_to(recorder, output, after=last.operation.index)
    mixing = {one for one in behind if _mixes(recorder, one, count)}
    found = (one for one in mixing if _reads_one_of(recorder, one, mixing))
    return max(found, key=lambda one: one.index, default=None)


def _mixes(recorder: Recorder, operation: Operation, count: int) -> bool:
    """Does it multiply tokens with tokens, as matrices or each element with each?"""
    shapes = [recorder.shapes[slot] for slot in operation.inputs if recorder.follows[slot]]
    if len(shapes) < 2 or min(map(len, shapes)) < 3:
        return False
    if operation.name in FACTORS:
        made = recorder.shapes[operation.outputs[0]]
        return made.numel() > max(shape.numel() for shape in shapes) and made.count(count) > 1
    by_name = operation.name in ("einsum", "tensordot")  # whose axes are anywhere
    within_each = all(count in shape[:-2] and count not in shape[-2:] for shape in shapes)
    return operation.name in PRODUCTS and (by_name or not within_each)


def _reads_one_of(recorder: Recorder, operation: Operation, others: set[Operation]) -> bool:
    """Is one of its operands computed from what one of the others made, without a linear layer between?"""
    waiting, known = list(operation.inputs), {operation}
    while waiting:
        for maker in recorder.writers[waiting.pop()]:
            if maker in others:
                return True
            if maker not in known and maker.name not in LINEAR:
                known.add(maker)
                waiting.extend(maker.inputs)
    return False
