"""What a model computes after its tokens, run again and again without what comes before."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ._borrow import answer_for, evaluation_mode, tap, uncompiled, watch_calls
from ._outputs import bare_output
from ._site import Site


class Readout(NamedTuple):
    """What one pass returned: the model's output, and the latent where one was asked for."""

    outputs: Tensor
    latents: Tensor | None


class TokenTail:
    """A model from its tokens on: `readout(tokens)`, with everything before the tokens computed once.

    The first pass records the tokens and the outputs of the outermost modules that finish before them. A later pass
    runs the user's own code again, but those modules answer from the record, so only what follows is computed.

        with TokenTail(model, (images,), Site(model.blocks[-1].norm1)) as tail:
            tail.tokens                        # (batch, tokens, channels), a leaf that requires grad
            tail.first.outputs                 # the model's output, differentiable with respect to tail.tokens
            tail.read(2 * tail.tokens)         # the output for other tokens

    The model is left as found: hooks, replaced forwards and train flags are undone on leaving, also after an error.

    Args:
        forward: The model or any function that calls it.
        inputs: Its positional arguments; the first one has the batch as its first axis.
        site: Where the tokens are.
        latent: Where the latent is read, if it is wanted; of (batch, tokens, channels) the first token is taken.
        graph: Should the first pass be differentiable with respect to the tokens?

    Raises:
        ValueError: if the site is not reached, or more than once, or does not hold one tensor with the batch first.
    """

    tokens: Tensor
    first: Readout

    def __init__(
        self,
        forward: Callable[..., Any],
        inputs: tuple[Any, ...],
        site: Site,
        *,
        latent: Site | None = None,
        graph: bool = True,
    ) -> None:
        self._forward = uncompiled(forward)
        self._site = site
        self._latent = latent
        self._graph = graph
        self._inputs = inputs
        self._batch = inputs[0].shape[0]
        self._stack = ExitStack()
        self._record: list[_Call] = []
        self._replay: _Replay | None = None

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(torch.inference_mode(False))
            self._inputs = _map(lambda x: x.clone() if x.is_inference() else x, self._inputs)
            self._stack.enter_context(evaluation_mode())
            self.first = self._first_pass()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._replay is not None:  # cycles, whose memory would wait to be collected
            self._replay.answers.clear()
            self._replay = None

    def read(self, tokens: Tensor) -> Readout:
        """The readout for other tokens: (copies * batch, tokens, channels), the batch repeated copy after copy."""
        if self._replay is None:
            self._replay = _Replay(self._record)
            self._stack.enter_context(answer_for(self._replay.answers))
        copies = tokens.shape[0] // self._batch
        replay = self._replay
        reached = False

        def exchange(_: Any) -> Tensor:
            nonlocal reached
            reached = True
            replay.stop()
            torch.set_grad_enabled(tokens.requires_grad)
            return tokens.clone()  # what follows may work in place, which a leaf forbids

        replay.start(lambda x: x.repeat(copies, *[1] * (x.dim() - 1)) if self._is_batched(x) else x.clone())
        try:
            readout = self._pass(exchange, _map(lambda x: x if copies == 1 else replay.copy(x), self._inputs))
        finally:
            replay.stop()
        if not reached:
            raise ValueError(f"The layer {_name(self._site)} ran in the first forward pass but not in a later one.")
        return readout

    def _is_batched(self, x: Tensor) -> bool:
        return x.dim() > 0 and x.shape[0] == self._batch

    def _first_pass(self) -> Readout:
        recorder = _Recorder()

        def exchange(value: Any) -> Tensor:
            if hasattr(self, "tokens"):
                raise ValueError(
                    f"The layer {_name(self._site)} ran more than once in one forward pass, so its tokens are not one "
                    "set. Pass a layer that runs once."
                )
            if not isinstance(value, Tensor) or value.dim() < 2 or not self._is_batched(value):
                raise ValueError(
                    f"Expected {_name(self._site)} to hold one tensor whose first axis is the batch of {self._batch}, "
                    f"got {_describe(value)}. Pass another layer."
                )
            self._record = recorder.stop()
            self.tokens = value.detach().clone().requires_grad_(self._graph and value.is_floating_point())
            torch.set_grad_enabled(self._graph)
            return self.tokens.clone()  # what follows may work in place, which a leaf forbids

        with watch_calls(recorder.before, recorder.after):
            readout = self._pass(exchange, self._inputs)
        if not hasattr(self, "tokens"):
            raise ValueError(
                f"The layer {_name(self._site)} did not run in the forward pass of this thread. Is it part of the "
                "model? A model that is spread over devices (nn.DataParallel) must be passed as its `.module`."
            )
        return readout

    def _pass(self, exchange: Callable[[Any], Tensor], inputs: tuple[Any, ...]) -> Readout:
        # No gradients until the tokens: the exchange turns them on.
        with torch.no_grad(), tap(self._site, exchange), _kept(self._latent) as latents:
            outputs = bare_output(self._forward(*inputs))
        return Readout(outputs, first_token(latents[-1]) if latents else None)


def read_latents(forward: Callable[..., Any], inputs: tuple[Any, ...], latent: Site | None) -> Tensor:
    """The latents (batch, channels) of a forward pass without gradients; without a site, the model's output itself."""
    with evaluation_mode(), torch.no_grad(), _kept(latent) as latents:
        output = bare_output(uncompiled(forward)(*inputs))
    return first_token(latents[-1] if latents else output)


@contextmanager
def _kept(site: Site | None) -> Iterator[list[Tensor]]:
    """What passes at a site, in order; nothing without a site."""
    kept: list[Tensor] = []

    def keep(value: Any) -> Any:
        kept.append(value[0] if isinstance(value, tuple) else value)
        return value

    with nullcontext() if site is None else tap(site, keep):
        yield kept


def first_token(value: Tensor) -> Tensor:
    """The first token's row of (batch, tokens, channels); (batch, channels) as it is."""
    return value[:, 0] if value.dim() == 3 else value


class _Call(NamedTuple):
    """A finished module call."""

    module: nn.Module
    output: Any


class _Recorder:
    """Keeps the outputs of the outermost modules that finish before the tokens are reached.

    All of them, although most are read by the next module only: a model may read any of them again behind the tokens,
    as heads on several layers do, and nothing seen here would tell.
    """

    def __init__(self) -> None:
        self._frames: list[list[_Call]] = [[]]  # finished calls inside each running call
        self._running = True

    def before(self, _: nn.Module) -> None:
        if self._running:
            self._frames.append([])

    def after(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if self._running:
            self._frames.pop()
            self._frames[-1].append(_Call(module, _map(lambda x: x.detach().clone(), output)))

    def stop(self) -> list[_Call]:
        self._running = False
        return [call for frame in self._frames for call in frame]


class _Replay:
    """Answers the calls of recorded modules from the record, in order, until the tokens are reached."""

    def __init__(self, record: list[_Call]) -> None:
        self._record = record
        self._waiting: dict[nn.Module, deque[_Call]] = {}
        self.copy: Callable[[Tensor], Tensor] = Tensor.clone
        self.answers: dict[nn.Module, Callable[..., Any]] = {call.module: _Answer(self, call.module) for call in record}

    def start(self, copy: Callable[[Tensor], Tensor]) -> None:
        self.copy = copy
        waiting: dict[nn.Module, deque[_Call]] = defaultdict(deque)
        for call in self._record:
            waiting[call.module].append(call)
        self._waiting = waiting

    def stop(self) -> None:
        self._waiting = {}

    def next(self, module: nn.Module) -> _Call | None:
        waiting = self._waiting.get(module)
        return waiting.popleft() if waiting else None


class _Answer:
    """One module's answer in a replay."""

    def __init__(self, replay: _Replay, module: nn.Module) -> None:
        self._replay = replay
        self._module = module

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = self._replay.next(self._module)
        if call is None:
            return forward(*args, **kwargs)
        return _map(self._replay.copy, call.output)


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, function, tree)


def _name(site: Site) -> str:
    return f"{type(site.module).__name__}{' (its input)' if site.at_input else ''}"


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else str(type(value))
