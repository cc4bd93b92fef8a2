"""What a model computes from some tokens on, as recorded operations that can run again for other tokens."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .attention_calls import AttentionCall, projected
from .operation_names import FLATTENINGS
from .operations import Operation, Replacement, Slot
from .recorder import Recorder, storage_of
from .saved_tensors import version_of
from .tokens import reads_of

_UNINITIALISED = frozenset(["empty_like", "new_empty", "new_empty_strided"])
_ADDITIONS = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__"])
_PRODUCTS_OF_GATES = frozenset(["mul", "mul_", "multiply"])


class NotReplayableError(Exception):
    """The operations after the tokens cannot be repeated one by one; says why."""


class Continuation:
    """The operations that follow from some tokens, taken while they run, and what else these read.

    Args:
        recorder: The running recording.
        tokens: The slot of the tokens.
        reads: The operations in which they are exchanged; None: all that read them.
        attention: The attention they enter, if any.
        others: The operations of the other attentions.

    Attributes:
        tokens: Their value.
        slot: Their slot.
        operations: What depends on them, in order.
        externals: The other tensors that these operations read.
        lost: Slots of tensors that are needed and no longer there.
        reasons: Why the operations cannot be repeated one by one, if so.
    """

    def __init__(
        self,
        recorder: Recorder,
        slot: Slot,
        reads: frozenset[Operation] | None,
        attention: AttentionCall | None = None,
        others: frozenset[Operation] = frozenset(),
    ) -> None:
        self.slot = slot
        self._others = others
        self._behind_residual = False
        self.attention = attention
        self.operations: list[Operation] = []
        self.externals: dict[Slot, Tensor] = {}
        self.dependent: set[Slot] = set()
        self.lost: list[Slot] = []
        self.reasons: list[str] = []
        self._recorder = recorder
        self._reads = reads
        self._written: set[Slot] = set()
        self._versions: dict[Slot, int] = {}
        self._storages: dict[Slot, int] = {}  # of what the operations made, as a view and its base share one
        self.tokens = self._take(slot)
        for operation in self._earlier(recorder, reads):
            self.add(operation)

    @staticmethod
    def _earlier(recorder: Recorder, reads: frozenset[Operation] | None) -> Iterable[Operation]:
        return recorder.operations[min(read.index for read in reads) :] if reads else ()

    @property
    def all_reads(self) -> list[Operation]:
        """The operations in which the tokens are exchanged."""
        if self._reads is not None:
            return list(self._reads)
        return [operation for operation in self._recorder.operations if self.slot in operation.inputs]

    def reads_tokens(self, operation: Operation) -> bool:
        """Are the tokens exchanged in this operation?"""
        return self.slot in operation.inputs if self._reads is None else operation in self._reads

    def add(self, operation: Operation) -> None:
        """Take an operation that just ran, if it depends on the tokens."""
        if operation.mutated is not None:
            self._preserve(operation, operation.mutated)
        reads = self.reads_tokens(operation)
        if not reads and self.dependent.isdisjoint(operation.inputs):
            return
        if self._reads is not None and not reads:
            self._check_flattened(operation)
            self._behind_residual = self._behind_residual or self._adds_residual(operation)
            if operation.name in _PRODUCTS_OF_GATES and not self._behind_residual:
                self._find_gate(operation)
        if operation.mutated is not None and operation.mutated not in self.dependent:
            self._mutates(operation, operation.mutated)
        own = {*self.dependent, self.slot} if reads else self.dependent
        for slot in operation.inputs:
            if slot not in own and slot not in self.externals:
                self.externals[slot] = self._take(slot)
        operation.before = None
        self._keep(operation)

    def _keep(self, operation: Operation) -> None:
        self.reasons.extend(_obstacles(operation))
        self.operations.append(operation)
        self.dependent.update(operation.outputs)
        for slot in operation.outputs:
            made = self._recorder.tensor(slot)
            self._storages[slot] = 0 if made is None else storage_of(made)

    def _check_flattened(self, operation: Operation) -> None:
        """Exchanged tokens that are flattened must not be read by anything but the attention."""
        for read in self._reads or ():
            flat = read.name in FLATTENINGS and len(self._recorder.shapes[read.outputs[0]]) == 2
            if flat and read.outputs[0] in operation.inputs and operation.index > self._attention_index >= 0:
                raise ValueError(
                    "The tokens of the last attention are flattened over samples, and so read by the attention and "
                    "elsewhere. Pass `layer=` the module whose output is the tokens."
                )

    def _adds_residual(self, operation: Operation) -> bool:
        """Is the attention's result added to what went past it?"""
        if operation.name not in _ADDITIONS or operation.index < self._attention_index:
            return False
        others = [slot for slot in operation.inputs if slot not in self.dependent and self._recorder.follows[slot]]
        return bool(others) and _shares_places(self._recorder, operation)

    @property
    def _attention_index(self) -> int:
        return -1 if self.attention is None else self.attention.operation.index

    def _find_gate(self, operation: Operation) -> None:
        """Tokens that gate the attention's output enter it, too: then what made the gate is taken."""
        others = [slot for slot in operation.inputs if slot not in self.dependent and self._recorder.follows[slot]]
        if not others or not _shares_places(self._recorder, operation):
            return
        before = frozenset(self.operations)
        gates = reads_of(self._recorder, operation, self.slot)
        gates = frozenset(op for op in gates - before - {operation} if projected(self._recorder, op) is not None)
        if not gates:
            return
        self._reads = (self._reads or frozenset()) | gates
        taken = list(self._recorder.operations[min(one.index for one in gates) : operation.index])
        self.operations, earlier = [], self.operations
        self.dependent.clear()
        for one in sorted({*earlier, *taken}, key=lambda one: one.index):
            self.add(one)

    def _mutates(self, operation: Operation, slot: Slot) -> None:
        """Something from before the tokens is changed in place by something that depends on them."""
        self._written.add(slot)
        self._versions.pop(slot, None)
        if operation.changes_view or operation.before is None:
            self.reasons.append("a tensor from before the tokens is changed in place")
        else:
            self.externals[slot] = operation.before

    def _preserve(self, operation: Operation, slot: Slot) -> None:
        """Keep what was taken as it was before an operation changed its memory, perhaps through another view of it."""
        target = self._recorder.tensor(slot)
        if target is None or operation.before is None or not (storage := storage_of(target)):
            return
        taken = {**self.externals, self.slot: self.tokens}
        stale = [one for one in taken if self._versions.get(one) == version_of(taken[one]) - 1]
        stale = [one for one in stale if storage_of(taken[one]) == storage and taken[one].dtype == target.dtype]
        if not stale:
            return
        count = target.untyped_storage().nbytes() // target.element_size()
        whole = target.detach().as_strided((count,), (1,), 0).clone()
        whole.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(operation.before)
        for one in stale:
            before = whole.as_strided(taken[one].shape, taken[one].stride(), taken[one].storage_offset())
            if one == self.slot:
                self.tokens = before
            if one in self.externals:
                self.externals[one] = before
            del self._versions[one]

    def _take(self, slot: Slot) -> Tensor:
        tensor = self._recorder.tensor(slot)
        if tensor is None:
            self.lost.append(slot)
            return torch.empty(0)
        self._versions[slot] = version_of(tensor)
        return tensor.detach()

    def finish(self, outputs: Iterable[Slot]) -> None:
        """The pass is over: keep what leads to these outputs, and see whether all that was taken is unchanged."""
        wanted = set(outputs)
        storages = {self._storages.get(slot, 0) for slot in wanted}
        kept = []
        for operation in reversed(self.operations):
            changes = operation.mutated is not None and self._storages.get(operation.mutated) in storages
            if changes or not wanted.isdisjoint(operation.outputs):
                kept.append(operation)
                wanted.update(operation.inputs)
                storages.update(self._storages.get(slot, 0) for slot in operation.inputs)
        self.operations = kept[::-1]
        self.externals = {slot: self.externals[slot] for slot in wanted if slot in self.externals}
        if any(slot in self.externals for slot in self.lost):
            self.reasons.append("a tensor that is needed was not kept")
        taken = {**self.externals, self.slot: self.tokens}
        if any(slot in self._versions and version_of(x) != self._versions[slot] for slot, x in taken.items()):
            self.reasons.append("a tensor that was read is changed in place later")

    def run(
        self,
        tokens: Tensor,
        wanted: Iterable[Slot],
        replacements: Mapping[int, Replacement] | None = None,
        *,
        before: int | None = None,
    ) -> list[Tensor]:
        """The values of some slots for other tokens of the same shape, differentiable where the model's code is.

        Args:
            tokens: The tokens.
            wanted: The slots.
            replacements: From an operation's `call` to what runs in its place.
            before: The index of an operation at which to stop, so that the values are those it meets; None: the end.

        Raises:
            NotReplayableError: if the operations cannot be repeated for these tokens.
        """
        if self.reasons:
            raise NotReplayableError(self.reasons[0])
        wanted = list(wanted)
        values: dict[Slot, Tensor] = dict(self.externals)
        for slot in self._written:
            if slot in values:
                values[slot] = values[slot].clone()
        own = tokens.clone() if self.slot in self._written else tokens
        operations = [op for op in self.operations if before is None or op.index < before]
        last_use = {slot: operation for operation in operations for slot in operation.inputs}
        gradients = torch.is_grad_enabled()
        try:
            for operation in operations:
                reads = self.reads_tokens(operation)
                torch.set_grad_enabled(gradients and operation.differentiable)
                replacement = None if replacements is None else replacements.get(operation.call)
                self._repeat(operation, values, own if reads else None, replacement)
                for slot in operation.inputs:
                    if last_use[slot] is operation and slot not in wanted and slot not in operation.outputs:
                        values.pop(slot, None)
        finally:
            torch.set_grad_enabled(gradients)
        return [values[slot] for slot in wanted]

    def _repeat(
        self,
        operation: Operation,
        values: dict[Slot, Tensor],
        tokens: Tensor | None,
        replacement: Replacement | None = None,
    ) -> None:
        def value(slot: Slot) -> Tensor:
            return tokens if tokens is not None and slot == self.slot else values[slot]

        args, kwargs = substituted((operation.args, operation.kwargs), value)
        with autocast_of(operation, self._recorder):
            if replacement is None:
                result = repeated(operation, args, kwargs)
            else:
                result = replacement(operation.func, args, kwargs)
        results = tensors_in(result)
        if operation.mutated is not None and len(results) < len(operation.outputs):
            results.append(value(operation.mutated))
        if len(results) != len(operation.outputs):
            raise NotReplayableError(f"`{operation.name}` returned another number of tensors")
        for slot, tensor in zip(operation.outputs, results, strict=True):
            if tensor.shape != self._recorder.shapes[slot] and slot != operation.mutated:
                raise NotReplayableError(f"the shape of what `{operation.name}` returns depends on the tokens' values")
            values[slot] = tensor


def _obstacles(operation: Operation) -> Iterator[str]:
    """Why an operation cannot be repeated."""
    if operation.returned_a_value:
        yield f"the model's code reads a number from what follows the tokens (`{operation.name}`)"
    if operation.unseen:
        yield "a part of the model runs unseen (TorchScript, a torch.autograd.Function, a backward hook)"


def repeated(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation returns for other arguments; a view becomes a copy where other strides do not allow it."""
    if operation.func is Tensor.view and not any(isinstance(x, torch.dtype) for x in args):
        return Tensor.reshape(*args, **kwargs)
    result = operation.func(*args, **kwargs)
    if operation.name in _UNINITIALISED and isinstance(result, Tensor) and result.is_floating_point():
        result.fill_(torch.nan)  # what the model writes there must be seen, or the outputs differ
    return result


def autocast_of(operation: Operation, recorder: Recorder) -> Any:
    """The autocast under which an operation was recorded."""
    device = recorder.device
    ambient = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if operation.autocast == ambient:
        return nullcontext()
    return torch.autocast(device, operation.autocast, enabled=operation.autocast is not None, cache_enabled=False)


def substituted(tree: Any, value: Any) -> Any:
    """Arguments with the slots replaced."""
    if isinstance(tree, Slot):
        return value(tree)
    if isinstance(tree, tuple):
        items = [substituted(x, value) for x in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [substituted(x, value) for x in tree]
    if isinstance(tree, dict):
        return {k: substituted(v, value) for k, v in tree.items()}
    return tree


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors that a function returned."""
    if isinstance(result, Tensor):
        return [result]
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def _shares_places(recorder: Recorder, operation: Operation) -> bool:
    shapes = [recorder.shapes[slot] for slot in operation.inputs if recorder.follows[slot]]
    return len(shapes) > 1 and len({shape[:2] for shape in shapes}) == 1
