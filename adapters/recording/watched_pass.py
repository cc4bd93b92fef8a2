"""One recorded forward pass of any model, and how it continues from the tokens of its last attention."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..models.hooks import watch_outputs
from .attention_calls import AttentionCall, AttentionFinder, projected
from .beside import attentions_beside, branches_beside, operations_leading_to
from .continuation import Continuation
from .hook_point import HookPoint, exchanged_at
from .opaque import check_last_is_seen, may_hold_attention
from .operation_names import ELEMENTWISE, MOVES
from .operations import Operation, Slot
from .queries import last_read_by_queries
from .recorder import InputsChangedError, Recorder, has_graph
from .saved_tensors import version_of
from .tokens import reads_of, tokens_of
from .unknown_attention import attention_behind

Forward = Callable[..., Any]

_NO_HEADS = MOVES | ELEMENTWISE | frozenset(["softmax", "log_softmax"])


class WatchedPass:
    """A forward pass: what it returned, its operations, and how it continues from the tokens.

    Args:
        forward: The model, or any function that calls it.
        arguments: Its positional arguments.
        read_output: Takes the tensor to explain from what the model returned.
        followed: How many of the arguments are the inputs to explain, from the first on.
        point: Where the tokens are; None: where they enter an attention.
        ordinal: Which attention, by its number in time; None: the last.
        earliest: The last one is not expected before this number; if it is, the pass must be made `again`.
        within: The module in which it runs; None: any.
        held: Numbers of operations whose results are kept alive until the end.
        on_attention: Told of each attention while its tensors live.
        latent: Is what the head reads wanted, or what another module returns?
        root: The model, whose modules tell what its head is.
        copies: Does the model get copies of the tensors? Else they are only guarded.
        graph: Is the graph kept, from the first attention on?
        by_queries: Is the last attention wanted that reads patches, not that of queries among themselves?

    Raises:
        InputsChangedError: if the model would change a guarded tensor in place. Nothing has been changed then.

    Attributes:
        returned: What the model returned.
        output: The tensor to explain, with its graph if that is kept.
        output_slot: Its slot; None if it does not depend on the inputs.
        continuation: How the pass continues from the tokens; None if there is no attention.
        beside: The attentions that the output depends on, but not by the tokens; where the last one is wanted.
        branches: What reads the inputs on other ways to the output, without attention; likewise.
        behind: What may be an attention behind the last one that is known; likewise.
    """

    def __init__(
        self,
        forward: Forward,
        arguments: tuple[Any, ...],
        read_output: Callable[[Any], Tensor],
        *,
        followed: int = 1,
        point: HookPoint | None = None,
        ordinal: int | None = None,
        earliest: int = 0,
        within: nn.Module | None = None,
        held: frozenset[int] = frozenset(),
        on_attention: Callable[[Recorder, AttentionCall], None] | None = None,
        latent: bool | nn.Module = False,
        root: nn.Module | None = None,
        copies: bool = True,
        graph: bool = False,
        by_queries: bool = False,
    ) -> None:
        self._latent_wanted = latent is not False
        self._latent_module = latent if isinstance(latent, nn.Module) else None
        self._on_attention = on_attention
        self.continuation: Continuation | None = None
        self.finder = AttentionFinder()
        self.beside: list[AttentionCall] = []
        self.branches: list[Operation] = []
        self.behind: Operation | None = None
        self._point = point
        self._by_queries = by_queries
        self._ordinal = ordinal
        self._earliest = earliest
        self._held = held
        self._kept: list[Tensor] = []
        self._head: Any = None
        self._module_slot: Slot | None = None
        self._module_calls: dict[Slot, Slot] = {}
        self._forgotten = 0
        self._opaque: list[Operation] = []
        self._inside = within is None
        self._within = within
        given = pytree.tree_map_only(Tensor, _copied if copies else _shared, arguments)
        tensors = [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor)]
        sources = [x for x in pytree.tree_leaves(given[:followed]) if isinstance(x, Tensor)]
        versions = [version_of(x) for x in tensors]
        self.recorder = Recorder(sources, self._listen, guarded=[] if copies else tensors, graph=graph)
        hook = nullcontext() if point is None else exchanged_at(point, self._pass_point)
        inside = nullcontext() if within is None else self._marked(within)
        noting = self._noting_modules(root) if self._latent_wanted else nullcontext()
        with torch.enable_grad(), hook, inside, noting, self.recorder:
            output = read_output(forward(*given))  # what chooses the output belongs to the model
        if not copies and [version_of(x) for x in tensors] != versions:
            raise ValueError(
                "The model changed its inputs in place, and so those that were passed, by something that is not seen "
                "(a compiled operation?). Explain a function that gives it copies: `lambda x: model(x.clone())`."
            )
        self.output_slot = None if has_graph(output) and not graph else self.recorder.slot_of(output)
        self.output = output if graph else output.detach()
        self.latent_slot = self._latent(self.output_slot) if self.output_slot is not None and latent else None
        read = None if self.latent_slot is None else self.recorder.tensor(self.latent_slot)
        self.latent = read if graph or read is None else read.detach()

    def finish(self, *, last: bool = False) -> None:
        """Keep what leads from the tokens to the output, and let go of the rest.

        Raises:
            ValueError: if the `last` attention is wanted, and one may hide behind it.
        """
        if last and self.continuation is not None and self.output_slot is not None:
            call, found = self.continuation.attention, (self.continuation.slot, self.output_slot)
            check_last_is_seen(self.recorder, call, self.output_slot, self._opaque)
            if call is not None:
                self.beside = attentions_beside(self.recorder, self.finder.calls, *found)
                self.branches = branches_beside(self.recorder, *found)
                self.behind = attention_behind(self.recorder, call, *found)
        wanted = [slot for slot in (self.output_slot, self.latent_slot) if slot is not None]
        if self.continuation is not None:
            self.continuation.finish(wanted)
        self._kept.clear()
        self._head = None
        self.recorder.stop_telling()

    def again(self) -> dict[str, Any] | None:
        """What another pass must do otherwise, to keep what this one lost; None if nothing was."""
        found = self.continuation
        if found is None and self._earliest:
            return {}
        if found is None or self.output_slot is None:
            return None
        ordinal = self._ordinal
        if found.attention is not None and self._point is None and self._ordinal is None and self._within is None:
            reaching = self.attentions_reaching(self.output_slot)
            if not reaching:
                return None
            last = (
                last_read_by_queries(self.recorder, self.finder.calls, reaching) if self._by_queries else reaching[-1]
            )
            ordinal = last.ordinal
            if ordinal != found.attention.ordinal:
                return {"ordinal": ordinal, "held": self._held}
        lost = [*found.lost, *([self.latent_slot] if self.latent is None and self.latent_slot is not None else [])]
        makers = (
            self.recorder.writers[slot][:1] or [op for op in self.recorder.operations if slot in op.inputs]
            for slot in lost
        )
        held = frozenset(op.index for ops in makers for op in ops) - self._held
        return {"ordinal": ordinal, "held": self._held | held} if held else None

    def attentions_reaching(self, output: Slot) -> list[AttentionCall]:
        """The attentions that the output depends on, in order."""
        known = operations_leading_to(self.recorder, output)
        return [call for call in self.finder.calls if call.operation in known]

    def _latent(self, slot: Slot) -> Slot:
        """What the head reads: the module of the model that made the output, or the linear layer; else the output.

        On the way back from the output what treats each element alone (a softmax, a factor) does not count.
        """
        if self._latent_module is not None:
            if self._module_slot is None:
                raise ValueError(
                    f"Expected `latent` to be a module whose output is one tensor that is made in this pass, got a "
                    f"{type(self._latent_module).__name__} that is not run, or returns something else."
                )
            return self._module_slot
        here = slot
        while True:
            found = self._module_calls.get(here)
            same = len(self.recorder.shapes[here]) == len(self.recorder.shapes[slot])
            if found is not None and found not in self.recorder.sources and same:
                return self._pooled(found, here)
            writers = self.recorder.writers[here][:1]
            if not writers:
                return slot
            read = projected(self.recorder, writers[0])
            if read is not None and writers[0].name == "linear":
                return read
            followed = [one for one in writers[0].inputs if self.recorder.follows[one]]
            if len(set(followed)) != 1 or writers[0].name not in _NO_HEADS:
                return slot
            here = followed[0]

    def _pooled(self, read: Slot, made: Slot) -> Slot:
        """Of a head that reads tokens and pools them itself, the first vector it makes of them."""
        if len(self.recorder.shapes[read]) < 3:
            return read
        here, vector = made, read
        while self.recorder.writers[here] and len(self.recorder.shapes[here]) == 2:
            vector = here
            followed = [one for one in self.recorder.writers[here][0].inputs if self.recorder.follows[one]]
            if len(set(followed)) != 1:
                break
            here = followed[0]
        return vector

    def _noting_modules(self, root: nn.Module | None) -> AbstractContextManager[None]:
        """Note what the modules of the model's first level read and made, or those of the one part it consists of."""
        if self._latent_module is not None:
            return watch_outputs([self._latent_module], self._note_latent)
        level = root
        while level is not None and len(children := list(level.children())) == 1:
            level = children[0]
        parts = [] if level is None else [m for m in level.children() if any(p.dim() > 1 for p in m.parameters())]

        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor) or not args:
                return
            read = self.recorder.slot_of(args[0]) if isinstance(args[0], Tensor) else None
            made = self.recorder.slot_of(output)
            if read is not None and made is not None:
                self._module_calls[made] = read
                self._head = (args[0], output)

        return watch_outputs(parts, note)

    def _note_latent(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            self._module_slot, self._head = self.recorder.slot_of(output), output

    def _listen(self, operation: Operation) -> None:
        if self._held or self._latent_wanted:
            self._hold(operation)
        if self.continuation is not None:
            self.continuation.add(operation)
        call = self.finder.found(self.recorder, operation)
        if call is not None:
            self._at_attention(call)
        elif self.finder.calls and may_hold_attention(self.recorder, operation):
            self._opaque.append(operation)

    def _at_attention(self, call: AttentionCall) -> None:
        if self._on_attention is not None:
            self._on_attention(self.recorder, call)
        if self._point is not None:
            found = self.continuation
            if found is not None and found.slot == tokens_of(self.recorder, self.finder.calls, call):
                found.attention = call
        elif self._inside and self._may_be_wanted(call):
            self.continuation = self._continue_from(call)
        elif self._ordinal is None and call.ordinal:
            self._forget(self.finder.calls[-2].operation.index)

    def _hold(self, operation: Operation) -> None:
        """Keep alive what an earlier pass lost, and what the last linear layer reads, which may be the head."""
        if operation.index in self._held:
            self._kept.extend(x for slot in operation.outputs if (x := self.recorder.tensor(slot)) is not None)
            self._kept.extend(operation.constants)
        if self._latent_wanted and self._latent_module is None and operation.name == "linear":
            read = projected(self.recorder, operation)
            self._head = self._head if read is None else self.recorder.tensor(read)

    def _may_be_wanted(self, call: AttentionCall) -> bool:
        return call.ordinal >= self._earliest if self._ordinal is None else call.ordinal == self._ordinal

    def _continue_from(self, call: AttentionCall) -> Continuation:
        tokens = tokens_of(self.recorder, self.finder.calls, call)
        others = frozenset(self.finder.ends - {call.operation})
        found = Continuation(self.recorder, tokens, reads_of(self.recorder, call.operation, tokens, others), call)
        first = found.operations[0].index if found.operations else call.operation.index
        self._forget(first)
        return found

    def _forget(self, first: int) -> None:
        """Let go of what the operations before one have kept."""
        for operation in self.recorder.operations[self._forgotten : first]:
            operation.forget()
        self._forgotten = max(self._forgotten, first)

    @contextmanager
    def _marked(self, module: nn.Module) -> Iterator[None]:
        """Know when a module runs."""
        thread = threading.get_ident()

        def enter(_: nn.Module, __: Any) -> None:
            self._inside = self._inside or threading.get_ident() == thread

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            self._inside = self._inside and threading.get_ident() != thread

        with module.register_forward_pre_hook(enter), module.register_forward_hook(leave):
            yield

    def _pass_point(self, value: Any) -> Tensor:
        calls = self.recorder.calls  # of what follows only one is made again when the model runs again
        if not isinstance(value, Tensor) or value.dim() < 2:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else str(type(value))
            raise ValueError(
                f"Expected {self._point} to hold one tensor with the batch first, got {found}. Pass a layer that "
                "returns one, or `attribute_to_layer_input=True` if it reads one."
            )
        if self.continuation is not None:
            raise ValueError(
                f"The layer {self._point} ran more than once in one forward pass, so its tokens are not one set. "
                "Pass a layer that runs once, or leave `layer` out and choose by `attention=`, a number in time."
            )
        self.recorder.calls = calls
        tokens = value.view_as(value)
        with self.recorder.pause():
            self.continuation = Continuation(self.recorder, self.recorder.follow(tokens), None)
        return tokens


def watched(
    forward: Forward, arguments: tuple[Any, ...], read_output: Callable[[Any], Tensor], *, copies: bool, **options: Any
) -> WatchedPass:
    """A watched pass that leaves the arguments as they are: a model that would change them gets copies."""
    try:
        return WatchedPass(forward, arguments, read_output, copies=copies, **options)
    except InputsChangedError:
        return WatchedPass(forward, arguments, read_output, **options)


def is_scripted(forward: Forward, modules: list[nn.Module]) -> bool:
    """Are there scripted parts, which may change inputs, or read tokens without gradients, unseen?"""
    return any(isinstance(part, torch.jit.ScriptModule | torch.jit.ScriptFunction) for part in (forward, *modules))


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _shared(tensor: Tensor) -> Tensor:
    """Another tensor with the same memory and a version counter of its own."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_inference()
    return tensor.data if plain else _copied(tensor)
