"""What the CDAM family shares with Captum: the constructor, the checks before any work, the shape of the result."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from captum.attr._utils.attribution import GradientAttribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adapters.models import OutputChoice
from adapters.recording import Grid, HookPoint, LastAttention, NotInClosedFormError, TokenPass

from ._advice import check_model, warn_of_others
from ._answer_attribution import AnswerAttribution
from ._checks import Failures, OnError, checked_inputs, further_arguments
from ._closed_form import check_closed_form
from ._grids import grid_for
from ._located import Question, question_of
from ._parts import chosen_part
from ._targets import Score, Target, latent_of, scores_of

Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, ...])

CLOSED_FORM = "closed form"
AUTOGRAD = "autograd from the tokens"
FROM_TOKENS = "runs from the tokens"
FULL_RUNS = "full runs of the model"

_closed_form_allowed: ContextVar[bool] = ContextVar("closed_form_allowed", default=True)


@contextmanager
def without_closed_form() -> Iterator[None]:
    """Inside, maps are computed by automatic differentiation from the tokens on, for comparison.

    Example:
        >>> import timm, torch
        >>> from captum_ext import CDAM, without_closed_form
        >>> model, images = timm.create_model("vit_tiny_patch16_224").eval(), torch.randn(1, 3, 224, 224)
        >>> with without_closed_form():
        ...     slow = CDAM(model).attribute(images, 7)
        >>> torch.allclose(slow, CDAM(model).attribute(images, 7), atol=1e-4)
        True
    """
    token = _closed_form_allowed.set(False)
    try:
        yield
    finally:
        _closed_form_allowed.reset(token)


class Path(NamedTuple):
    """Which way a map is computed, and why not a faster one (None for the fastest)."""

    way: str
    reason: str | None


class Tokens(NamedTuple):
    """The tokens that are explained, and where they lie.

    Attributes:
        values: (batch, tokens, channels), or a feature map.
        order: (height, width) numbers of tokens, flattened, that lie on the places of an image; of videos and volumes
            (frames, height, width); None without a grid.
    """

    values: Tensor
    order: Tensor | None


class Formula(Protocol):
    """A method's formula: scores (targets, batch, tokens)."""

    def by_autograd(self, run: TokenPass, scores: Sequence[Score]) -> Tensor:
        """For any model, by automatic differentiation or runs from the tokens."""
        ...

    def in_closed_form(self, last: LastAttention, scores: Sequence[Score]) -> Tensor:
        """For a model whose output reads some rows of a softmax attention, of which the rest is known."""
        ...


@dataclass(frozen=True)
class Request:
    """One call of `attribute` or `attribute_targets`, before it is checked."""

    inputs: Tensor | tuple[Tensor, ...]
    targets: Sequence[Target] | Tensor
    additional_forward_args: Any
    attribute_to_layer_input: bool
    return_tokens: bool
    on_error: OnError = "raise"


class TokenAttribution(AnswerAttribution, LayerAttribution, GradientAttribution):  # type: ignore[misc] # captum is untyped
    """Base of the CDAM family: explains a model's output by the tokens that enter its last attention.

    Args:
        forward_func: The model, or any function that returns its output.
        layer: The module whose output is the tokens, or its name. None: they are what the last attention reads.
        attention: Which attention, where it is not the last one: its number in time (from the end if negative), or a
            module in which it runs, or its name.
        output: Which tensor of what the model returns is explained.
        device_ids: Accepted as in Captum's layer classes; a model that is spread over devices runs on the first one.
    """

    _general_way: ClassVar[str] = AUTOGRAD
    _reads: ClassVar[str] = "a gradient"  # what a map is made of

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | None = None,
        attention: int | nn.Module | str | None = None,
        *,
        output: OutputChoice = None,
        device_ids: Sequence[int] | None = None,
    ) -> None:
        check_model(forward_func)
        if not isinstance(layer, nn.Module | str | None):
            raise TypeError(f"Expected `layer` to be a torch.nn.Module or its name, got {type(layer)}.")
        if isinstance(attention, bool) or not isinstance(attention, int | nn.Module | str | None):
            raise TypeError(
                f"Expected `attention` to be an int, a torch.nn.Module, its name or None, got {type(attention)}."
            )
        if layer is not None and attention is not None:
            raise ValueError("Expected `layer` or `attention`, got both: each says where the tokens are.")
        layer = chosen_part("layer", layer, forward_func)
        self.attention = chosen_part("attention", attention, forward_func)
        self.output = output
        self._earliest: int | None = None  # the lowest number that the last attention had so far
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)

    def __init_subclass__(cls) -> None:
        """Log usage as Captum's own classes do: NoiseTunnel calls `attribute.__wrapped__`, which this provides."""
        super().__init_subclass__()
        cls.attribute = log_usage()(cls.attribute)

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: the gradient is multiplied by the tokens."""
        return True

    def path(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Path:
        """Which way the maps of these inputs are computed, and why not a faster one.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: As for `attribute`; the way depends on it for targets of detections and masks only.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.

        Returns:
            `.way` ("closed form", "autograd" or "runs from the tokens", "full runs of the model") and `.reason`.

        Example:
            >>> import timm, torch
            >>> from captum_ext import CDAM
            >>> CDAM(timm.create_model("vit_tiny_patch16_224").eval()).path(torch.randn(1, 3, 224, 224)).way
            'closed form'
        """
        question = self._question([target], checked_inputs(inputs), additional_forward_args, Failures("raise"))
        run = self._run(inputs, additional_forward_args, attribute_to_layer_input, question=question)
        try:
            check_closed_form(LastAttention(run))
            return Path(CLOSED_FORM, None)
        except NotInClosedFormError as error:
            with torch.no_grad():
                run.checked(run.tokens)
            return Path(self._general_way, str(error)) if run.reason is None else Path(FULL_RUNS, run.reason)

    def attribute_contrasts(self, inputs: Any, classes: Any, *args: Any, **kwargs: Any) -> Any:
        """Why each class and not each other one, of all pairs of classes from one pass through the model.

        `map_a - map_b`, exactly, as the maps are linear in the score.

        Args:
            inputs: As for `attribute`.
            classes: A list of targets, as for `attribute_targets`.
            *args: Further arguments of `attribute_targets`.
            **kwargs: Further arguments of `attribute_targets`.

        Returns:
            (batch, classes, classes, height, width), or (batch, classes, classes, tokens): in row a and column b why a
            and not b. With a convergence delta a tuple of it and the deltas (batch, classes, classes).

        Raises:
            TypeError: as for `attribute_targets`.
            ValueError: as for `attribute_targets`.

        Example:
            >>> import timm, torch
            >>> from captum_ext import CDAM
            >>> model = timm.create_model("vit_tiny_patch16_224").eval()
            >>> CDAM(model).attribute_contrasts(torch.randn(1, 3, 224, 224), [3, 5, 8]).shape
            torch.Size([1, 3, 3, 14, 14])
        """
        found = self.attribute_targets(inputs, classes, *args, **kwargs)
        return pytree.tree_map(lambda values: values[:, :, None] - values[:, None], found)

    @abstractmethod
    def attribute_targets(self, inputs: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
        """Explain several targets of each sample from one pass through the model."""

    def tokens(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Tokens:
        """The tokens that are explained, and where they lie on an image.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
        """
        run = self._run(inputs, additional_forward_args, attribute_to_layer_input)
        grid = run.grid()
        return Tokens(run.tokens.detach(), None if grid is None else grid.order.view(grid.sizes))

    def _run(
        self,
        inputs: Any,
        additional_forward_args: Any,
        at_input: bool,
        *,
        latent: bool | nn.Module = False,
        question: Question | None = None,
    ) -> TokenPass:
        given = checked_inputs(inputs)
        question = question or Question([], self.output)
        if at_input and self.layer is None:
            raise ValueError("`attribute_to_layer_input` is for a `layer` that is given; here the tokens are found.")
        run = TokenPass(
            self.forward_func,
            (*given, *further_arguments(self.forward_func, additional_forward_args)),
            followed=len(given),
            point=None if self.layer is None else HookPoint(self.layer, at_input),
            attention=question.attention if self.attention is None else self.attention,
            latent=latent,
            earliest=self._earliest or 0,
            output=question.output,
        )
        last = run.continuation.attention
        if last is not None:
            self._earliest = last.ordinal if self._earliest is None else min(self._earliest, last.ordinal)
        return run

    def _question(
        self, targets: Any, given: tuple[Tensor, ...], additional_forward_args: Any, failures: Failures
    ) -> Question:
        arguments = (*given, *further_arguments(self.forward_func, additional_forward_args))
        return question_of(targets, self.forward_func, arguments, self.output, failures)

    def _attribute_many(self, request: Request, formula: Formula) -> Any:
        """Maps (batch, targets, height, width), or scores (batch, targets, tokens); a tuple if the inputs are one."""
        with torch.inference_mode(False):
            maps = self._maps(request, formula)
        return (maps,) if isinstance(request.inputs, tuple) else maps

    def _attribute_one(self, request: Request, formula: Formula) -> Any:
        """A map (batch, 1, height, width), or scores (batch, tokens); a tuple if the inputs are one."""
        with torch.inference_mode(False):
            maps = self._maps(request, formula)
        maps = maps if maps.dim() == 4 else maps[:, 0]
        return (maps,) if isinstance(request.inputs, tuple) else maps

    def _maps(self, request: Request, formula: Formula) -> Tensor:
        failures = Failures(request.on_error)
        given = checked_inputs(request.inputs, failures)
        question = self._question(request.targets, given, request.additional_forward_args, failures)
        scores = scores_of(question.targets, len(given[0]), given[0].device)
        run = self._run(
            given,
            request.additional_forward_args,
            request.attribute_to_layer_input,
            latent=latent_of(scores),
            question=question,
        )
        warn_of_others(run)
        for score in scores:
            score.check(run.prediction)  # a target the output cannot answer is an error before any gradient
        predictions = torch.atleast_1d(run.prediction.outputs).shape[0]
        failures.check_independent(predictions, run.batch)
        grid = grid_for(run, given[0], required=not request.return_tokens)
        parts = _scores(formula, run, scores)
        _check_result(parts, grid, failures, predictions, self._reads)
        parts = failures.as_nan(parts.transpose(0, 1), stacklevel=6)
        if request.return_tokens or grid is None:
            return parts
        return grid.arranged(parts)


def _scores(formula: Formula, run: TokenPass, scores: Sequence[Score]) -> Tensor:
    if _closed_form_allowed.get():
        try:
            return formula.in_closed_form(LastAttention(run), scores)
        except NotInClosedFormError:
            pass
    return formula.by_autograd(run, scores)


def _check_result(parts: Tensor, grid: Grid | None, failures: Failures, predictions: int, reads: str) -> None:
    finite = torch.isfinite(parts).all(-1).all(0)
    failures.add(
        ~finite,
        f"The model's {reads.split()[1]} is NaN or infinite for sample(s) {{}}, although the inputs are finite. "
        "Are the weights finite? In float16 the model may overflow: use bfloat16 or float32.",
    )
    patches = parts if grid is None else parts[..., grid.places.to(parts.device)]
    has_gradient = (patches != 0).any(-1).all(0)
    if predictions < len(has_gradient) and bool(has_gradient.any()):
        return  # of several inputs to one prediction, some may not matter
    failures.add(
        ~has_gradient & finite,
        f"No patch token has {reads} for sample(s) {{}}: the score asked for does not depend on what these tokens "
        "bring into the attention at this layer, and the map would be blank. Usual causes: the layer lies behind "
        "the last attention that mixes tokens (pass the norm in front of it), the head's weights for this target "
        "are zero (an untrained head), all words but one are masked, or gradients are cut (torch.no_grad or detach "
        "in the model's forward, or reentrant gradient checkpointing).",
    )
