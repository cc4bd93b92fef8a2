"""Which tensor holds the tokens of an attention, and by which operations it enters."""

from .attention_calls import AttentionCall, key_of, query_of, samples_points, value_projections
from .operation_names import FLATTENINGS, SPLITTING, VIEWS
from .operations import Operation, Slot
from .picks import picks_by_content
from .recorder import Recorder


def tokens_of(recorder: Recorder, calls: list[AttentionCall], call: AttentionCall) -> Slot:
    """The tokens of an attention: what its value projection reads.

    Where keys and queries do not come from that (values made in several steps, copies that are clipped apart), the
    latest tensor that all of them come from.
    """
    reads = [read for _, read in value_projections(recorder, calls, call.value)]
    if not reads and (key := key_of(recorder, call)) is not None:  # values to which those of an earlier layer are added
        reads = [read for _, read in value_projections(recorder, calls, key) if comes_from(recorder, call.value, read)]
    if not reads:
        return _before_views(recorder, _sampled_from(recorder, call.value) if call.samples_points else call.value)
    for read in list(reads):
        if any(other != read and comes_from(recorder, read, other) for other in reads):
            reads.remove(read)
    return _unflattened(recorder, _common_origin(recorder, calls, call, reads[-1]))


def comes_from(recorder: Recorder, slot: Slot, origin: Slot) -> bool:
    """Is one tensor computed from another?"""
    if slot == origin:
        return True
    first = made_at(recorder, origin)
    waiting, known = [slot], set()
    while waiting:
        one = waiting.pop()
        for operation in recorder.writers[one][:1]:
            if operation.index > first and operation not in known:
                if origin in operation.inputs:
                    return True
                known.add(operation)
                waiting.extend(operation.inputs)
    return False


def _sampled_from(recorder: Recorder, value: Slot) -> Slot:
    """The tensor whose parts, the maps of several scales, were sampled at points to make these values."""
    waiting, sampled = {value}, False
    while True:
        slot = max(waiting, key=lambda one: made_at(recorder, one))
        operation = next(iter(recorder.writers[slot]), None)
        if operation is None or (sampled and len(waiting) == 1 and operation.name not in VIEWS):
            return slot
        here = samples_points(operation)
        sampled |= here
        waiting.remove(slot)
        waiting.update(operation.inputs[:1] if here else (one for one in operation.inputs if recorder.follows[one]))


def made_at(recorder: Recorder, slot: Slot) -> int:
    """When a tensor was made, as the number of the operation; -1 of the inputs."""
    return recorder.writers[slot][0].index if recorder.writers[slot] else -1


def _before_views(recorder: Recorder, slot: Slot) -> Slot:
    """Values that are not projected, before they were split into heads."""
    living = slot
    while len(writers := recorder.writers[slot]) == 1 and writers[0].name in SPLITTING:
        origin = writers[0].inputs[0]
        living = origin if recorder.tensor(origin) is not None else living
        slot = origin
    return living


def _unflattened(recorder: Recorder, slot: Slot) -> Slot:
    """Tokens before samples and tokens became one axis, as GPT-2's layers do it."""
    writers = recorder.writers[slot]
    if len(recorder.shapes[slot]) != 2 or len(writers) != 1 or writers[0].name not in FLATTENINGS:
        return slot
    origin = writers[0].inputs[0]
    fits = len(recorder.shapes[origin]) == 3 and recorder.shapes[origin][-1] == recorder.shapes[slot][-1]
    return origin if fits and recorder.tensor(origin) is not None else slot


def _common_origin(recorder: Recorder, calls: list[AttentionCall], call: AttentionCall, read: Slot) -> Slot:
    """The latest tensor, not later than what the values are projected from, that all operands are made from.

    Of queries, keys and values; or only of keys and values, where the queries come from another attention.
    """
    others = frozenset(other.operation for other in calls if other is not call)
    key, query = key_of(recorder, call), query_of(recorder, call)
    for operands in ((read, key, query), (read, key)):
        followed = {slot for slot in operands if slot is not None and recorder.follows[slot]}
        found = _passed_by_all(recorder, followed, read, others)
        if found is not None:
            return _also_read_by_others(recorder, call, found, others)
    return read


def _also_read_by_others(recorder: Recorder, call: AttentionCall, slot: Slot, barriers: frozenset[Operation]) -> Slot:
    """Tokens before they were rearranged, where a bias of the attention is made from them in that form."""
    followed = {one for one in call.operation.inputs if recorder.follows[one]}
    whole = _passed_by_all(recorder, followed | {slot}, slot, barriers)
    here = slot
    while whole is not None and here != whole and recorder.writers[here] and recorder.writers[here][0].name in VIEWS:
        here = recorder.writers[here][0].inputs[0]
    return here if here == whole and whole not in recorder.sources else slot


def _passed_by_all(recorder: Recorder, slots: set[Slot], latest: Slot, barriers: frozenset[Operation]) -> Slot | None:
    """The latest tensor through which all ways to some tensors lead, without one of the barriers behind it."""
    waiting, known, limit = set(slots), set(slots), made_at(recorder, latest)
    while waiting:
        slot = max(waiting, key=lambda one: (made_at(recorder, one), one))
        if len(waiting) == 1 and made_at(recorder, slot) <= limit and len(recorder.shapes[slot]) >= 2:
            return slot
        waiting.remove(slot)
        for operation in recorder.writers[slot]:
            if operation in barriers:
                return None
            new = {one for one in operation.inputs if recorder.follows[one]} - known
            waiting |= new
            known |= new
    return None


def reads_of(
    recorder: Recorder, operation: Operation, slot: Slot, others: frozenset[Operation] = frozenset()
) -> frozenset[Operation]:
    """The operations by which tokens enter an attention, or a later operation: those that read them and lead to it.

    What leads to it through other attentions does not count: in an encoder-decoder all layers read the same words. Nor
    does what picks queries among the tokens by what they are (two-stage detectors), unless there is no other way.
    """
    for picked in (False, True):
        ancestors = _ancestors(recorder, operation, slot, others, picked=picked)
        if reads := frozenset(op for op in ancestors if slot in op.inputs):
            return reads
    return frozenset()


def _ancestors(
    recorder: Recorder, last: Operation, slot: Slot, others: frozenset[Operation], *, picked: bool
) -> set[Operation]:
    """What leads to an operation, and ran after the slot was made, without what leads to the slot.

    Args:
        recorder: The recording.
        last: The operation.
        slot: The slot.
        others: Operations that do not count, nor what leads to them.
        picked: Do those count that pick places by what they hold?
    """
    first = made_at(recorder, slot)
    found: set[Operation] = {last}
    waiting = list(last.inputs)
    known: set[Slot] = {slot}
    while waiting:
        one = waiting.pop()
        if one in known:
            continue
        known.add(one)
        for operation in recorder.writers[one]:
            new = first < operation.index < last.index and operation not in found and operation not in others
            if new and (picked or not picks_by_content(recorder, operation)):
                found.add(operation)
                waiting.extend(operation.inputs)
    return found
