"""What runs in one piece that cannot be looked into, and so may hold an attention that was not seen."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .attention_calls import AttentionCall
from .beside import operations_leading_to
from .operations import Operation, Slot
from .recorder import Recorder

_READABLE = frozenset(["aten", "prims", "torchvision"])  # operators that are what their names say
_HOOKS = "BackwardHookFunction"  # by which torch calls hooks of modules; returns what it reads


def may_hold_attention(recorder: Recorder, operation: Operation) -> bool:
    """Is it an operator of another library, or unseen, and not known to treat each row alone?

    It is asked right after it ran, when its tensors live: of what ran unseen (TorchScript, a torch.autograd.Function)
    the gradient of one element tells whether that depends on other rows.
    """
    if operation.unseen:
        return not _keeps_rows(recorder.tensor(operation.outputs[0]), map(recorder.tensor, operation.inputs))
    return is_foreign(operation)


def is_foreign(operation: Operation) -> bool:
    """Is it an operator of another library, such as a fused kernel?"""
    namespace = getattr(operation.func, "namespace", None) or _of_packet(operation.func)
    return namespace is not None and namespace not in _READABLE


def check_last_is_seen(
    recorder: Recorder, last: AttentionCall | None, output: Slot, opaque: Sequence[Operation]
) -> None:
    """See that no attention may hide between the last one that was seen and the output.

    Args:
        recorder: The recording.
        last: The last attention; None: tokens are elsewhere.
        output: What is explained.
        opaque: What may hold one, in order.

    Raises:
        ValueError: if one may.
    """
    if last is None or not opaque:
        return
    leading = operations_leading_to(recorder, output, after=last.operation.index)
    hiding = next((operation for operation in reversed(opaque) if operation in leading), None)
    if hiding is None:
        return
    what = f"`{hiding.func}`"
    if hiding.unseen:
        what = "a part that runs unseen (TorchScript, or a torch.autograd.Function such as a fused kernel)"
    raise ValueError(
        f"Behind the last attention that was seen the model runs {what}, which may be an attention, and then the map "
        "would be that of an earlier one. Load the model with another attention (of transformers: "
        '`attn_implementation="sdpa"`), or, if it is none, say that the last one seen is meant: `attention=-1`.'
    )


def _of_packet(func: object) -> str | None:
    qualified = getattr(func, "_qualified_op_name", None)
    return qualified.split("::")[0] if isinstance(qualified, str) else None


def _keeps_rows(made: Tensor | None, read: Iterable[Tensor | None]) -> bool:
    """Does an element in the middle depend on its own row only, all but the last axis being rows?"""
    if made is None or made.grad_fn is None:
        return False
    if _HOOKS in made.grad_fn.name():
        return True
    if made.dim() < 3:
        return True  # no tokens any more
    place = tuple(size // 2 for size in made.shape)
    for origin in read:
        if origin is None or origin.shape[:-1] != made.shape[:-1]:
            return False
        try:
            (gradient,) = torch.autograd.grad(made[place], origin, retain_graph=True, allow_unused=True)
        except (RuntimeError, NotImplementedError):  # it has none, or refuses to be asked twice
            return False
        if gradient is not None and bool((gradient != 0).any(-1).sum() > gradient[place[:-1]].ne(0).any()):
            return False
    return True
