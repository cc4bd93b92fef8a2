"""What the output depends on beside its way through the tokens: other streams, views and branches of a model."""

from collections.abc import Iterable

from .attention_calls import AttentionCall
from .operations import Operation, Slot
from .recorder import Recorder


def operations_leading_to(
    recorder: Recorder, slot: Slot, *, without: Slot | None = None, after: int = -1
) -> set[Operation]:
    """The operations that a tensor is computed by.

    Args:
        recorder: The recording.
        slot: The tensor.
        without: Ways through this tensor do not count.
        after: Nor do operations up to this number.
    """
    waiting, found = [slot], set()
    while waiting:
        here = waiting.pop()
        for operation in () if here == without else recorder.writers[here]:
            if operation.index > after and operation not in found:
                found.add(operation)
                waiting.extend(operation.inputs)
    return found


def attentions_beside(
    recorder: Recorder, calls: Iterable[AttentionCall], tokens: Slot, output: Slot
) -> list[AttentionCall]:
    """The attentions that the output depends on although they neither lead to the tokens nor read them.

    Of a plain transformer there are none, as its residual stream leads to the tokens. They are the other members of an
    ensemble, other views of an image, other branches: what reaches the output by them is not in the tokens' scores.
    """
    beside = operations_leading_to(recorder, output, without=tokens) - operations_leading_to(recorder, tokens)
    found = [call for call in calls if call.operation in beside]
    return found and [call for call in found if call.operation not in _computed_from(recorder, tokens)]


def _computed_from(recorder: Recorder, tokens: Slot) -> set[Operation]:
    slots, found = {tokens}, set()
    for operation in recorder.operations:
        if not slots.isdisjoint(operation.inputs):
            found.add(operation)
            slots.update(operation.outputs)
    return found
