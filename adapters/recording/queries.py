"""By which attention the queries of a decoder read the image, when they also read one another."""

from .attention_calls import AttentionCall, query_of
from .operations import Operation, Slot
from .picks import picks
from .places import have_places
from .recorder import Recorder
from .tokens import tokens_of

BY_QUERIES = "by queries"


def last_read_by_queries(
    recorder: Recorder, calls: list[AttentionCall], reaching: list[AttentionCall]
) -> AttentionCall:
    """The last attention, or where its tokens are queries, the last one by which these read other tokens.

    In a decoder queries may look at one another behind that (Mask2Former), which says nothing of places. If none is
    seen to read others, as what reads them is not known, it is the last one all the same.

    Args:
        recorder: The recording.
        calls: All attentions.
        reaching: Those that the output depends on, in order.
    """
    last = reaching[-1]
    if have_places(recorder, tokens_of(recorder, calls, last)):
        return last
    attentions = frozenset(call.operation for call in calls)
    return next((call for call in reversed(reaching) if _reads_others(recorder, calls, call, attentions)), last)


def _reads_others(
    recorder: Recorder, calls: list[AttentionCall], call: AttentionCall, attentions: frozenset[Operation]
) -> bool:
    """Are values made of tokens of which queries are not made?"""
    tokens, query = tokens_of(recorder, calls, call), query_of(recorder, call)
    asking = [query] if query is not None else list(call.softmax.inputs if call.softmax is not None else ())
    made_directly = [_made_of(recorder, slots, tokens, attentions) for slots in ([call.value], asking)]
    return made_directly == [True, False]


def _made_of(recorder: Recorder, slots: list[Slot], origin: Slot, attentions: frozenset[Operation]) -> bool:
    """Are tensors computed from another one by one: without an attention between, or picking parts of it?"""
    waiting, known = list(slots), set()
    while waiting:
        slot = waiting.pop()
        if slot == origin:
            return True
        for operation in recorder.writers[slot][:1] if slot not in known else ():
            if operation not in attentions and not picks(operation):
                waiting.extend(operation.inputs)
        known.add(slot)
    return False
