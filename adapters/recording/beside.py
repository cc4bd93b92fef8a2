"""What the output depends on beside its way through the tokens: other streams, views and branches of a model."""

from collections.abc import Iterable

import torch

from .attention_calls import AttentionCall
from .operation_names import LINEAR, PRODUCTS
from .operations import Operation, Slot
from .recorder import Recorder

_TRANSPOSED = frozenset(f"conv_transpose{axes}d" for axes in (1, 2, 3))
_WEIGHTED = LINEAR | PRODUCTS | _TRANSPOSED | {"embedding", "bilinear", "lstm", "gru", "rnn_tanh", "rnn_relu"}


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
    beside = _beside(recorder, tokens, output)
    return [call for call in calls if call.operation in beside]


def branches_beside(recorder: Recorder, tokens: Slot, output: Slot) -> list[Operation]:
    """Where the model reads its inputs once more, by weights, on ways to the output that do not meet the tokens.

    Such as the first convolution of a CNN whose logits are added to those of a transformer. What reads a residual
    stream or earlier layers is none: a map of the last attention never shows what goes around it there.
    """
    raw = set(recorder.sources)  # the inputs, and what is computed from them without weights, as normalised images
    for operation in recorder.operations:
        followed = {slot for slot in operation.inputs if recorder.follows[slot]}
        if operation.name not in _WEIGHTED and followed <= raw:
            raw.update(slot for slot in operation.outputs if recorder.dtypes[slot] is not torch.bool)  # no mask
    beside = _beside(recorder, tokens, output)
    found = (one for one in beside if one.name in _WEIGHTED and not raw.isdisjoint(one.inputs))
    return sorted(found, key=lambda one: one.index)


def _beside(recorder: Recorder, tokens: Slot, output: Slot) -> set[Operation]:
    """The operations that the output depends on although they neither lead to the tokens nor read them."""
    beside = operations_leading_to(recorder, output, without=tokens) - operations_leading_to(recorder, tokens)
    if beside:
        slots = {tokens}
        for operation in recorder.operations:
            if not slots.isdisjoint(operation.inputs):
                beside.discard(operation)
                slots.update(operation.outputs)
    return beside
