"""A model read at the tokens that enter its last attention, and run from there again and again."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..models.evaluation_mode import evaluation_mode
from ..models.outputs import OutputChoice, output_tensor
from ..models.unwrapping import modules_of, root_module, uncompiled
from .attention_calls import AttentionCall
from .batch_layout import BatchLayout, layout_of
from .channels import channel_axis
from .continuation import NotReplayableError, substituted, tensors_in
from .hook_point import HookPoint, exchanged_at
from .input_advice import UNBATCHED, input_advice, no_batch_axis
from .layer_advice import layer_advice, none_found
from .operations import Operation, Replacement, Slot
from .places import Grid, covers, grid_of
from .prediction import DifferentOutputError, Prediction
from .queries import BY_QUERIES
from .recorder import Recorder
from .repeat import Repeat, with_tokens
from .watched_pass import Forward, WatchedPass, is_scripted, watched

MOST_PASSES = 4


class NoTokensError(ValueError):
    """There are no tokens in this pass."""


class TokenPass:
    """One forward pass of a model, from which its tokens are known, and how it continues from them.

    The model is run as it is, on copies of the inputs, in evaluation mode, while this thread's torch functions are
    watched. Nothing is remembered from one call to the next, so that whatever is changed in between, counts.

    Args:
        forward: The model, or any function that calls it.
        arguments: Its positional arguments; the first one has the batch as its first axis.
        followed: How many of the arguments are the inputs to explain, from the first on.
        point: Where the tokens are. None: they are what the last attention reads.
        attention: Which attention reads them, if not the last: its number in time, from the end if negative; a module
            in which it runs; or BY_QUERIES, the last one that reads patches, and not queries.
        on_attention: Told of each attention while its tensors live.
        latent: Is what the head reads wanted, too, or what a module returns?
        earliest: The lowest number that the last attention had in earlier passes, which makes this one quicker.
        output: Which tensor of what the model returns is explained, as for `output_tensor`.
        graph: Does the prediction keep its graph, from the first attention on?

    Attributes:
        tokens: (batch, ..., channels), or with the channels at another axis.
        channels: The axis of the channels.
        layout: How the model had the samples in them.
        batch: How many samples there are.
        prediction: What the model returned in this very pass.
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
        attention: int | nn.Module | str | None = None,
        on_attention: Callable[[Recorder, AttentionCall], None] | None = None,
        latent: bool | nn.Module = False,
        earliest: int = 0,
        output: OutputChoice = None,
        graph: bool = False,
    ) -> None:
        self._graph = graph
        self._read_output = partial(output_tensor, choice=output, given=arguments[0])
        self._latent = latent
        self._on_attention = on_attention
        self._forward = uncompiled(forward)
        self._arguments = arguments
        self._point = point
        self._root = root = root_module(self._forward)
        self._scripted = is_scripted(self._forward, modules_of(root))
        self.batch = arguments[0].shape[0]
        try:
            one = self._watch(followed, attention, earliest)
        except Exception as error:
            advice = input_advice(lambda *given: self._read_output(self._forward(*given)), arguments, root)
            if advice is None:
                raise
            raise ValueError(advice) from error
        if any(len(one.recorder.shapes[op.inputs[0]]) == UNBATCHED.get(op.name) for op in one.recorder.operations):
            raise ValueError(no_batch_axis(arguments[0]))
        found = one.continuation
        if found is None:
            raise NoTokensError(none_found(one, self._forward, self._arguments, point))
        self.watched, self.continuation = one, found
        self.slot = found.slot
        self.layout = BatchLayout(self.batch) if point is not None else self._find_layout()
        self.tokens = self.layout.to_batch(found.tokens)
        self.channels = channel_axis(one.recorder, found, self.layout, at_layer=point is not None)
        same = one.latent is None or one.latent_slot == one.output_slot
        self.prediction = Prediction(one.output, one.output if same or one.latent is None else one.latent)
        if isinstance(latent, nn.Module) and one.latent_slot not in {*found.dependent, None}:
            raise ValueError(f"What {type(latent).__name__}, given as `latent`, returns does not depend on the tokens.")
        self.reason = found.reasons[0] if found.reasons else None
        if self._scripted:
            self.reason = self.reason or "a part of the model is scripted (TorchScript)"
        if one.output_slot is None or one.output_slot not in found.dependent:
            self.reason = self.reason or "what the model returns is made unseen"

    def _watch(self, followed: int, attention: int | nn.Module | str | None, earliest: int) -> WatchedPass:
        within = attention if isinstance(attention, nn.Module) else None
        ordinal = attention if isinstance(attention, int) else None
        options: dict[str, Any] | None = {"ordinal": None if ordinal is None or ordinal < 0 else ordinal}
        if attention in (None, BY_QUERIES) and self._point is None and earliest:
            options = {"earliest": earliest}
        with torch.inference_mode(False), evaluation_mode(self._forward):
            for _ in range(MOST_PASSES):
                one = watched(
                    self._forward,
                    self._arguments,
                    self._read_output,
                    followed=followed,
                    point=self._point,
                    within=within,
                    on_attention=self._on_attention,
                    latent=self._latent,
                    root=self._root,
                    copies=self._scripted,
                    graph=self._graph,
                    by_queries=attention == BY_QUERIES,
                    **(options or {}),
                )
                if ordinal is not None and not -len(one.finder.calls) <= ordinal < len(one.finder.calls):
                    raise ValueError(
                        f"Expected `attention` to be one of the {len(one.finder.calls)} attentions of this "
                        f"model, got {ordinal}."
                    )
                if ordinal is not None and ordinal < 0:
                    options, ordinal = {"ordinal": len(one.finder.calls) + ordinal}, None
                    continue
                options = one.again()
                if options is None:
                    break
            one.finish(last=attention in (None, BY_QUERIES) and self._point is None)
        return one

    def predict(self, tokens: Tensor) -> Prediction:
        """The prediction for other tokens of the same shape, differentiable by them if they require a gradient."""
        if self.reason is None:
            try:
                return self.replayed(tokens)
            except NotReplayableError as error:
                self.reason = str(error)
        return self.rerun(tokens)

    def check(self, prediction: Prediction) -> None:
        """See whether a prediction of the tokens themselves is what the model returned.

        Raises:
            DifferentOutputError: if it is not.
        """
        own, found = self.prediction.outputs.detach(), prediction.outputs.detach()
        if own.shape != found.shape:
            raise DifferentOutputError
        eps = max(torch.finfo(x.dtype).eps for x in (own, found, self.tokens) if x.is_floating_point())
        finite = torch.isfinite(own)
        if not bool((torch.isfinite(found) == finite).all()):
            raise DifferentOutputError
        error = torch.where(finite, (found - own).abs(), 0).max() if own.numel() else 0
        if error > eps**0.5 * torch.where(finite, own.abs(), 0).max():
            raise DifferentOutputError

    def checked(self, tokens: Tensor) -> Prediction:
        """The prediction of the tokens themselves, which must be what the model returned.

        Raises:
            DifferentOutputError: if the model returns something else each time.
        """
        if self.reason is None:
            prediction = self.predict(tokens)
            try:
                self.check(prediction)
                return prediction
            except DifferentOutputError:
                self.reason = "what the model computes was not seen completely"
        prediction = self.rerun(tokens)
        self.check(prediction)
        return prediction

    def replayed(self, tokens: Tensor, replacements: Mapping[int, Replacement] | None = None) -> Prediction:
        """The prediction by repeating the recorded operations, some of them replaced.

        Raises:
            NotReplayableError: if they cannot be repeated.
        """
        one = self.watched
        with torch.inference_mode(False), torch.set_grad_enabled(tokens.requires_grad or bool(replacements)):
            wanted = [slot for slot in (one.output_slot, one.latent_slot) if slot is not None]
            found = self.continuation.run(self.layout.from_batch(tokens), wanted, replacements)
        return self.prediction_of(found)

    def prediction_of(self, found: Sequence[Tensor]) -> Prediction:
        """Of the output and the latent, if that is wanted; without a head the latent is the output itself."""
        one = self.watched
        return Prediction(found[0], found[0] if one.latent_slot in (None, one.output_slot) else found[-1])

    def rerun(self, tokens: Tensor, also: Mapping[int, Replacement] | None = None) -> Prediction:
        """The same by running the model from the beginning, the tokens exchanged and other operations replaced."""
        tokens, also = self.layout.from_batch(tokens), also or {}
        with torch.set_grad_enabled(tokens.requires_grad or not also):
            if self._point is not None:
                return self.repeat(also, tokens)
            reads = self.continuation.all_reads
            return self.repeat({**{read.call: with_tokens(read, self.slot, tokens) for read in reads}, **also})

    def repeat(self, replacements: Mapping[int, Replacement], at_point: Tensor | None = None) -> Prediction:
        """What the model returns when it runs again, with some operations replaced.

        Args:
            replacements: From an operation's `call` to what runs in its place.
            at_point: What the layer returns, or reads, that was given; None: what it does.

        Raises:
            ValueError: if the model does not run these operations again.
        """
        copies = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), self._arguments)
        latents: list[Tensor] = []
        head = self._head()

        def keep(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            inner = replacements.get(-1 if head is None else head.call)
            result = func(*args, **kwargs) if inner is None else inner(func, args, kwargs)
            place = 0 if head is None else head.outputs.index(self.watched.latent_slot)
            latents.append(tensors_in(result)[place])
            return result

        repeat = Repeat(replacements if head is None else {**replacements, head.call: keep})

        def exchange(value: Tensor) -> Tensor:
            own = value.view_as(value)  # one call, as in the watched pass
            return own if at_point is None else at_point

        hook = nullcontext() if self._point is None else exchanged_at(self._point, exchange)
        allowed = torch.set_grad_enabled(torch.is_grad_enabled())  # entering the other mode would allow gradients
        with torch.inference_mode(False), allowed, evaluation_mode(self._forward), hook, repeat:
            output = self._read_output(self._forward(*copies))
        if repeat.replaced < len(replacements):
            raise ValueError(
                "The model does other things each time it is called with the same inputs, so that its tokens cannot be "
                "exchanged. Is something random in it?"
            )
        return Prediction(output, latents[-1] if latents else output)

    def _head(self) -> Operation | None:
        """The operation that makes the latent."""
        slot = self.watched.latent_slot
        if slot is None or slot == self.watched.output_slot:
            return None
        return next((op for op in self.watched.recorder.writers[slot] if op.mutated is None and not op.unseen), None)

    def values(self, slots: list[Slot], before: int | None = None) -> list[Tensor]:
        """The values of some tensors on the way from the tokens, without gradients, as an operation meets them."""
        with torch.inference_mode(False), torch.no_grad():
            return self.continuation.run(self.continuation.tokens, slots, before=before)

    def arguments_of(self, operation: Operation) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What an operation on the way from the tokens was called with."""
        known = {**self.continuation.externals, self.slot: self.continuation.tokens}
        slots = [slot for slot in dict.fromkeys(operation.inputs) if slot not in known]
        values = {**known, **dict(zip(slots, self.values(slots, operation.index), strict=True))}
        found: tuple[tuple[Any, ...], dict[str, Any]] = substituted(
            (operation.args, operation.kwargs), lambda slot: values[slot]
        )
        return found

    def attentions(self) -> list[AttentionCall]:
        """The attentions up to the one that the tokens enter through which the output is reached, in order."""
        last = self.continuation.attention
        if last is None or self.watched.output_slot is None:
            return []
        return [
            call for call in self.watched.attentions_reaching(self.watched.output_slot) if call.ordinal <= last.ordinal
        ]

    @property
    def count(self) -> int:
        """How many tokens a sample has."""
        return self.tokens[0].numel() // self.tokens.shape[self.channels]

    def grid(self) -> Grid | None:
        """Where the tokens lie on an image, a video or a volume; None if they lie on no grid."""
        if self.tokens.dim() < 3:
            return None  # one vector for each sample
        grid = grid_of(self.watched.recorder, self.slot, self.layout, self.channels)
        image = self._arguments[0].shape
        if grid is None and self.tokens.dim() == len(image) > 3:  # perhaps a feature map, of which no patches are known
            sizes = tuple(size for axis, size in enumerate(self.tokens.shape) if axis not in (0, self.channels))
            whole = Grid(sizes, torch.arange(self.count))
            return whole if covers(whole, (image[-2], image[-1])) else None
        return grid

    def _find_layout(self) -> BatchLayout:
        found = layout_of(self.watched.recorder, self.slot, self.batch)
        if found is None:
            raise ValueError(
                f"The tokens of the last attention have shape {tuple(self.continuation.tokens.shape)}, in which the "
                f"batch of {self.batch} is not found: several inputs or parts of them are tokens together. Instead, "
                f"{layer_advice(self._forward, self._arguments)}."
            )
        return found
