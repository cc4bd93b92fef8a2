"""A model read at the tokens that enter its last attention, and run from there again and again."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._borrow import evaluation_mode, uncompiled
from .._forward import root_module
from .._outputs import bare_output
from .continuation import NotReplayableError
from .exchange import Exchange
from .places import Grid, grid_of
from .watched_pass import Forward, HookPoint, WatchedPass, exchanged_at

_MOST_PASSES = 4


class Readout(NamedTuple):
    """What the model returned for some tokens: the output to explain, and what its head read."""

    outputs: Tensor
    latents: Tensor


class NoTokensError(ValueError):
    """There are no tokens in this pass."""


class TokenPass:
    """One forward pass of a model, from which its tokens are known, and how it goes on from them.

    The model is run as it is, on copies of the inputs, in evaluation mode, while this thread's torch functions are
    watched. Nothing is remembered from one call to the next, so that whatever is changed in between, counts.

    Args:
        forward: The model, or any function that calls it.
        arguments: Its positional arguments; the first one has the batch as its first axis.
        followed: How many of the arguments are the inputs to explain, from the first on.
        point: Where the tokens are. None: they are what the last attention reads.
        ordinal: Which attention reads them, counted in time, from the end if negative.

    Attributes:
        tokens: (batch, ..., channels), or with the channels at another axis.
        channels: The axis of the channels.
        readout: What the model returned in this very pass.
        reason: Why what follows the tokens cannot be repeated without running the whole model; None if it can.

    Raises:
        NoTokensError: if there is no attention.
        ValueError: if `point` is not reached, or more than once, or does not hold one tensor with the batch first.
    """

    def __init__(
        self,
        forward: Forward,
        arguments: tuple[Any, ...],
        *,
        followed: int = 1,
        point: HookPoint | None = None,
        ordinal: int | None = None,
    ) -> None:
        self._forward = uncompiled(forward)
        self._arguments = arguments
        self._point = point
        root = root_module(self._forward)
        training = root is None or any(module.training for module in root.modules())
        self._mode: Callable[[], Any] = evaluation_mode if training else nullcontext
        self._batch = arguments[0].shape[0]
        one = self._watch(followed, ordinal)
        found = one.continuation
        if found is None:
            raise NoTokensError(self._none_found())
        self.watched, self.continuation = one, found
        self.slot = found.slot
        self._axis = 0 if point is not None else self._batch_axis()
        self.tokens = found.tokens.movedim(self._axis, 0)
        self.channels = self._channel_axis()
        self.readout = Readout(one.output, one.output if one.latent is None else one.latent.detach())
        self.reason = found.reasons[0] if found.reasons else None
        if one.output_slot is None or one.output_slot not in found.dependent:
            self.reason = self.reason or "what the model returns is made unseen"

    def _watch(self, followed: int, ordinal: int | None) -> WatchedPass:
        with torch.inference_mode(False), self._mode():
            options: dict[str, Any] | None = {"ordinal": None if ordinal is None or ordinal < 0 else ordinal}
            for _ in range(_MOST_PASSES):
                one = WatchedPass(
                    self._forward, self._arguments, bare_output, followed=followed, point=self._point, **options
                )
                if ordinal is not None and ordinal < 0:
                    options, ordinal = {"ordinal": len(one.finder.calls) + ordinal}, None
                    continue
                options = one.again()
                if options is None:
                    break
            one.finish()
        return one

    def read(self, tokens: Tensor) -> Readout:
        """The readout for other tokens of the same shape, differentiable by them if they require a gradient."""
        if self.reason is None:
            try:
                return self._replayed(tokens)
            except NotReplayableError as error:
                self.reason = str(error)
        return self._rerun(tokens)

    def _replayed(self, tokens: Tensor) -> Readout:
        one = self.watched
        with torch.inference_mode(False), torch.set_grad_enabled(tokens.requires_grad):
            outputs, latents = self.continuation.run(
                tokens.movedim(0, self._axis), [one.output_slot, one.latent_slot]
            )
        return Readout(outputs, latents)

    def _rerun(self, tokens: Tensor) -> Readout:
        """The same by running the model from the beginning, with the tokens exchanged."""
        reads = frozenset(op for op in self.continuation.all_reads)
        exchange = Exchange(self.slot, reads, tokens.movedim(0, self._axis))
        copies = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), self._arguments)  # noqa: SLF001
        hook = nullcontext() if self._point is None else exchanged_at(self._point, lambda value: value.view_as(value))
        with torch.inference_mode(False), torch.enable_grad(), self._mode(), hook, exchange:
            output = bare_output(self._forward(*copies))
        if exchange.exchanged != len(reads):
            raise ValueError(
                "The model does other things each time it is called with the same inputs, so that its tokens cannot be "
                "exchanged. Is something random in it?"
            )
        return Readout(output, output)

    def grid(self) -> Grid | None:
        """Where the tokens lie on an image; None if they lie on no grid."""
        return grid_of(self.watched.recorder, self.slot, self._axis, self._natural(self.channels))

    def _natural(self, axis: int) -> int:
        """An axis of `tokens` as one of the tensor that the model made."""
        order = list(range(self.tokens.dim()))
        order.insert(0, order.pop(self._axis))
        return order[axis]

    def _batch_axis(self) -> int:
        shape = self.continuation.tokens.shape
        if shape[0] == self._batch:
            return 0
        fits = [axis for axis, size in enumerate(shape[:-1]) if size == self._batch]
        if len(fits) == 1:
            return fits[0]
        raise ValueError(
            f"The tokens of the last attention have shape {tuple(shape)}, in which no axis is the batch of "
            f"{self._batch}: several inputs or parts of them are tokens together. Pass `layer=` a module whose output "
            "has the batch as its first axis."
        )

    def _channel_axis(self) -> int:
        if self._point is not None or not self.continuation.views:
            return self.tokens.dim() - 1
        recorder = self.watched.recorder
        reads = [op for op in self.continuation.operations if self.continuation.views[0] in op.inputs]
        convolved = any(op.name.startswith("conv") for op in reads)
        if not convolved:
            return self.tokens.dim() - 1
        return 1 if len(recorder.shapes[self.slot]) > 2 else self.tokens.dim() - 1

    def _none_found(self) -> str:
        if self._point is not None:
            return (
                f"The layer {self._point} did not run in the forward pass of this thread. Is it part of the model? A model "
                "that is spread over devices (nn.DataParallel) must be passed as its `.module`."
            )
        return (
            "No attention was seen in this forward pass: no softmax of products of queries and keys that weights values. "
            "Of a convolutional network use captum.attr.LayerGradCam or a method of pytorch-grad-cam, or pass `layer=` the "
            "module whose output times gradient you want."
        )
