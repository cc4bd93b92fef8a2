"""The norms of the tokens on the residual path, where outliers are seen that a norm in front of the attention hides."""

from torch import Tensor

from .attention_calls import AttentionCall
from .recorder import Recorder
from .tokens import made_at

_SUMS = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__"])


def stream_norms(recorder: Recorder, call: AttentionCall) -> Tensor | None:
    """The norm of each token on the residual path in front of an attention, (batch, tokens); None where it is not seen.

    To be called when the attention was just seen: the path lives, as what the attention gives is added to it.
    """
    waiting, known = {call.value}, {call.value}
    while waiting:
        slot = max(waiting, key=lambda one: made_at(recorder, one))
        waiting.remove(slot)
        for operation in recorder.writers[slot][:1]:
            shape, alive = recorder.shapes[slot], recorder.tensor(slot)
            if operation.name in _SUMS and len(shape) == 3 and alive is not None:
                norms: Tensor = alive.detach().float().norm(dim=-1)
                return norms
            new = {one for one in operation.inputs if recorder.follows[one]} - known
            waiting |= new
            known |= new
    return None
