"""Recording what a forward pass does, operation by operation, without touching the model."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .functions import ABOUT_SHAPE, TYPE, collect, function_of, in_parts, known_functions, rewritten
from .operation_names import BEGINNINGS, SOFTMAXES, may_mutate
from .operations import Operation, Slot
from .saved_tensors import as_it_is, unchanged, version_of

_FIX = getattr(torch._C, "_fix_weakref", None)  # noqa: SLF001 # as torch.utils.weak does, where torch needs it


class InputsChangedError(BaseException):
    """The model is about to change its inputs in place; passes through any `except Exception` of the model's code."""


class Listener(Protocol):
    """Is told of each operation when it has run, while its tensors live."""

    def __call__(self, operation: Operation) -> None:
        """Is told of one."""
        ...


class Recorder(TorchFunctionMode):
    """While active, records what this thread computes from some tensors, and nothing of other threads.

    Operations that do not depend on these tensors are not recorded; what they made is known as constants. Nothing is
    kept alive but the bookkeeping: who needs a tensor later must take it when told of it.

    Args:
        sources: The tensors to follow, the model's inputs.
        listener: Told of each operation.
        guarded: Tensors that must not be changed in place.
        graph: Is the graph kept, from the first softmax or fused attention on? Else each operation runs without one.
    """

    def __init__(
        self, sources: list[Tensor], listener: Listener, guarded: list[Tensor] | None = None, *, graph: bool = False
    ) -> None:
        super().__init__()
        self._wants_graph = graph
        self._starts: list[tuple[Tensor, Operation]] = []  # the leaves of the graph, and what made them
        self._nodes: dict[tuple[Any, int], Slot] = {}  # where the graph has what was seen
        self._guarded = {storage_of(x) for x in guarded or ()}
        self.calls = 0
        self.operations: list[Operation] = []
        self.shapes: list[torch.Size] = []
        self.dtypes: list[torch.dtype] = []
        self.follows: list[bool] = []
        self.writers: list[list[Operation]] = []  # who made a tensor, and who changed it
        self.sources: list[Slot] = []
        self._references: list[weakref.ref[Tensor]] = []
        self._seen: dict[int, Slot] = {}
        self._changed_storages: set[int] = set()
        self._listener = listener
        self._paused = False
        self.device = sources[0].device.type if sources else "cpu"
        for source in sources:
            slot = self._new(source, None, follows=True)
            self.sources.append(slot)
            if source.is_floating_point():
                source.requires_grad_()  # what runs unseen shows itself by its graph

    def tensor(self, slot: Slot) -> Tensor | None:
        """The tensor of a slot, if it still lives."""
        found = self._references[slot]()
        if found is not None and _FIX is not None:
            _FIX(found)
        return found

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """The slot of a tensor that was seen."""
        slot = self._seen.get(id(tensor))
        return None if slot is None or self._references[slot]() is not tensor else slot

    def stop_telling(self) -> None:
        """Let go of the listener, which holds the recorder, and of the graph."""
        self._listener = _nobody
        self._nodes.clear()
        self._starts.clear()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, nothing is recorded: for what is no part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def follow(self, tensor: Tensor) -> Slot:
        """Follow a tensor from here on, whatever it was computed from."""
        slot = self.slot_of(tensor)
        slot = self._new(tensor, None, follows=True) if slot is None else slot
        self.follows[slot] = True
        if tensor.is_floating_point() and tensor.is_leaf:
            tensor.requires_grad_()
        return slot

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        self.calls += 1
        name, kind, may_change = known_functions.get(func) or function_of(func)
        if kind is not None:
            if kind is ABOUT_SHAPE or (kind is TYPE and len(args) == 1 and not kwargs):
                return func(*args, **kwargs)
            if (parts := in_parts(func, args, kwargs)) is not None:
                with self:
                    return parts(*args, **kwargs)
            func, name, args, kwargs = rewritten(func, name, args, kwargs)
        mutates = bool(may_change or kwargs) and may_mutate(name, args, kwargs)
        if self._guarded and (mutates or name in _OUT_OF_SIGHT) and self._is_guarded(name, args, kwargs):
            raise InputsChangedError
        tensors: list[Tensor] = []
        slots: list[Slot] = []
        given = tuple(self._slotted(args, tensors, slots))
        named = dict(zip(kwargs, self._slotted(kwargs.values(), tensors, slots), strict=True)) if kwargs else {}
        follows = self.follows
        constants = tuple([x for x, slot in zip(tensors, slots, strict=True) if not follows[slot]])
        if not tensors:  # the switching of gradients passes here, too
            return func(*args, **kwargs)
        if len(constants) == len(tensors):
            with torch.no_grad() if not self._starts else contextlib.nullcontext():  # where a graph is kept, these may
                return func(*args, **kwargs)  # be parts of followed tensors that are not known as such (in torch.vmap)
        operation = Operation(
            len(self.operations), self.calls, name, func, given, named, tuple(slots), constants=constants
        )
        return self._run(operation, args, kwargs, mutates=mutates)

    def _slotted(self, values: Iterable[Any], tensors: list[Tensor], slots: list[Slot]) -> list[Any]:
        """Arguments with the tensors replaced by slots; both are collected, in order."""
        found: list[Any] = []
        for value in values:
            if isinstance(value, Tensor):
                slot = self._slot(value)
                tensors.append(value)
                slots.append(slot)
                found.append(slot)
            elif isinstance(value, tuple):
                items = self._slotted(value, tensors, slots)
                found.append(type(value)(*items) if hasattr(value, "_fields") else tuple(items))
            elif isinstance(value, list):
                found.append(self._slotted(value, tensors, slots))
            elif isinstance(value, dict):
                found.append(dict(zip(value, self._slotted(value.values(), tensors, slots), strict=True)))
            else:
                found.append(value)
        return found

    def _slot(self, tensor: Tensor) -> Slot:
        """The slot of a tensor that an operation reads; it may be a constant, or have been made unseen."""
        slot = self._seen.get(id(tensor))
        if slot is not None and self._references[slot]() is not tensor:
            slot = None
        if has_graph(tensor) and (slot is None or self._nodes.get((tensor.grad_fn, tensor.output_nr)) != slot):
            if slot is None or not any(writer.unseen for writer in self.writers[slot]):
                slot = self._made_unseen(tensor) or slot
        elif slot is None and self._changed_storages and storage_of(tensor) in self._changed_storages:
            return self._new(tensor, None, follows=True)
        return self._new(tensor, None, follows=False) if slot is None else slot

    def _is_guarded(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        target = _target(name, args, kwargs)
        return target is not None and storage_of(target) in self._guarded

    def _run(self, operation: Operation, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, mutates: bool) -> Any:
        if torch.is_autocast_enabled(self.device):
            operation.autocast = torch.get_autocast_dtype(self.device)
        operation.differentiable = torch.is_grad_enabled()
        target = _target(operation.name, args, kwargs)
        version = version_of(target)
        if target is not None and mutates:
            operation.before = target.detach().clone()
        in_graph = bool(self._starts)
        torch._C._set_grad_enabled(in_graph and operation.differentiable)  # noqa: SLF001 # quicker than a context
        try:
            if in_graph:
                with saved_tensors_hooks(as_it_is, unchanged):
                    result = operation.func(*args, **kwargs)
            else:
                result = operation.func(*args, **kwargs)
            if self._wants_graph and operation.name in BEGINNINGS:
                result = self._begin(operation, result)
            outputs: list[Tensor] = []
            collect((result,), outputs)
            if target is not None and version_of(target) != version:
                operation.mutated = self.slot_of(target)
                outputs = [*outputs, target] if all(x is not target for x in outputs) else outputs
            else:
                operation.before = None
            self.operations.append(operation)
            operation.outputs = tuple([self._output(x, operation) for x in outputs])
            if self._starts:
                made = zip(outputs, operation.outputs, strict=True)
                self._nodes |= {(x.grad_fn, x.output_nr): slot for x, slot in made if has_graph(x)}
        finally:
            torch._C._set_grad_enabled(operation.differentiable)  # noqa: SLF001
        operation.returned_a_value = not outputs and result is not None
        if operation.mutated is not None and target is not None and target._is_view():  # noqa: SLF001
            operation.changes_view = True
            self._changed_storages.add(storage_of(target))
        self._listener(operation)
        return result

    def _output(self, tensor: Tensor, operation: Operation) -> Slot:
        slot = self.slot_of(tensor)
        if slot is not None:  # changed in place, or returned as it was
            self.follows[slot] = True
            self.writers[slot].append(operation)
            return slot
        slot = self._new(tensor, operation, follows=True)
        if not self._starts and tensor.is_floating_point() and operation.differentiable:
            _mark(tensor)
        return slot

    def _begin(self, operation: Operation, result: Any) -> Any:
        """Have the graph begin with what a softmax or a fused attention returned, and note where it is there.

        One whose inputs are no part of the graph is another beginning, as the second attention of a first layer.
        """
        if not isinstance(result, Tensor) or result.dim() < 3:
            return result
        if operation.differentiable and not has_graph(result):
            for slot in () if self._starts else self._seen.values():
                _unmark(self.tensor(slot) if self.follows[slot] else None)
            start = result.detach().requires_grad_()
            self._starts.append((start, operation))
            torch._C._set_grad_enabled(True)  # noqa: SLF001
            result = start.clone()  # which the model may change in place
        if has_graph(result):
            operation.edge = get_gradient_edge(result)
        operation.weights = result.detach() if operation.name in SOFTMAXES else None
        return result

    def _new(self, tensor: Tensor, producer: Operation | None, *, follows: bool) -> Slot:
        slot = Slot(len(self._references))
        self._references.append(weakref.ref(tensor))
        self._seen[id(tensor)] = slot
        self.shapes.append(tensor.shape)
        self.dtypes.append(tensor.dtype)
        self.writers.append([] if producer is None else [producer])
        self.follows.append(follows)
        return slot

    def _made_unseen(self, tensor: Tensor) -> Slot | None:
        """If a tensor comes from followed ones by something that was not seen, that becomes an operation."""
        origins = tuple(dict.fromkeys(slot for slot in self._origins(tensor) if self.follows[slot]))
        if not origins:
            return None
        operation = Operation(len(self.operations), self.calls, "unseen", _unseen, (), {}, origins, unseen=True)
        self.operations.append(operation)
        slot = self._new(tensor, operation, follows=True)
        operation.outputs = (slot,)
        self._listener(operation)
        return slot

    def _origins(self, tensor: Tensor) -> Iterator[Slot]:
        """The nearest tensors that were seen, from which one was computed, by its graph."""
        waiting, known = [(tensor.grad_fn, tensor.output_nr)], set()
        while waiting:
            place = waiting.pop()
            node, _ = place
            if node is None or place in known:
                continue
            known.add(place)
            variable = getattr(node, "variable", None)
            if place in self._nodes:
                yield self._nodes[place]
            elif isinstance(variable, Tensor):
                made = next((operation for start, operation in self._starts if variable is start), None)
                slot = self.slot_of(variable) if made is None else made.outputs[0]
                if slot is not None:
                    yield slot
            else:
                waiting.extend(node.next_functions)


def _mark(tensor: Tensor) -> None:
    """Have it carry a gradient: what then runs unseen shows itself by its graph."""
    try:
        tensor.requires_grad_()  # also of a view, which only says so because the other tensor does
    except RuntimeError:  # a view of something that was changed in place
        return


def _unmark(tensor: Tensor | None) -> None:
    """Undo that."""
    try:
        if tensor is not None and tensor.requires_grad and tensor.is_leaf and not isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
    except RuntimeError:  # as above
        return


def storage_of(tensor: Tensor) -> int:
    """Where a tensor's memory is, the same for all views of it; 0 without any (sparse, or batched by torch.func)."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (NotImplementedError, RuntimeError):
        return 0


def has_graph(tensor: Tensor) -> bool:
    """Was a tensor computed with a graph?"""
    try:
        return tensor.requires_grad and tensor.grad_fn is not None
    except RuntimeError:  # a view made here, without a graph, of something that was changed in place
        return False


def _nobody(operation: Operation) -> None:
    del operation


def _unseen() -> Any:
    raise AssertionError("What was not seen cannot be repeated.")


_OUT_OF_SIGHT = frozenset(["numpy", "__array__", "__dlpack__", "storage", "share_memory_"])
"""What gives the memory of a tensor to others."""


def _target(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a function may change in place."""
    target = kwargs.get("out", args[0] if args else kwargs.get("input"))
    return target if isinstance(target, Tensor) else None
