"""What the CDAM family shares with Captum: the constructor, the checks before any work, the shape of the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from captum.attr._utils.attribution import GradientAttribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from adapters import (
    AttentionTail,
    Site,
    TokenAnatomy,
    TokenLayout,
    TokenTail,
    UnsuitableError,
    attention_tail_of,
    borrowed,
    find_anatomy,
    known_classes,
    root_module,
    token_layout,
    uncompiled,
)

from ._checks import as_tuple, checked_inputs, image_size_of, samples_where
from ._targets import ConceptScore, Score, Target, scores_of

Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, ...])


class Formula(Protocol):
    """A method's formula: scores (targets, batch, tokens), and whether any patch received a gradient."""

    def of_tail(self, tail: TokenTail, scores: Sequence[Score], layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """For any model, by automatic differentiation."""
        ...

    def of_attention(self, tail: AttentionTail, scores: Sequence[Score]) -> tuple[Tensor, Tensor]:
        """For a model whose last attention is known."""
        ...


@dataclass(frozen=True)
class Question:
    """One call of `attribute` or `attribute_targets`, before it is checked."""

    inputs: Tensor | tuple[Tensor, ...]
    targets: Sequence[Target] | Tensor
    additional_forward_args: Any
    attribute_to_layer_input: bool
    return_tokens: bool


class TokenAttribution(LayerAttribution, GradientAttribution):  # type: ignore[misc] # captum is untyped
    """Base of the CDAM family: explains a model's output by the tokens that enter its last attention.

    Args:
        forward_func: The model, or any function that returns its output.
        layer: The module whose output is the tokens. None: found in the model.
    """

    def __init__(self, forward_func: Callable[..., Any], layer: nn.Module | None = None) -> None:
        if not callable(forward_func):
            raise TypeError(f"Expected `forward_func` to be a model or a function, got {type(forward_func)}.")
        if layer is not None and not isinstance(layer, nn.Module):
            raise TypeError(f"Expected `layer` to be a torch.nn.Module, got {type(layer)}.")
        root = root_module(uncompiled(forward_func), layer)
        if layer is not None and root is not None and all(layer is not module for module in root.modules()):
            raise ValueError(
                f"Expected `layer` to be a part of the model, got a {type(layer).__name__} that is not in this "
                f"{type(root).__name__}. Take it from the model that is passed."
            )
        self._finds_layer = layer is None
        LayerAttribution.__init__(self, forward_func, _found(root).tokens.module if layer is None else layer)
        GradientAttribution.__init__(self, forward_func)

    def __init_subclass__(cls) -> None:
        """Log usage as Captum's own classes do: NoiseTunnel calls `attribute.__wrapped__`, which this provides."""
        super().__init_subclass__()
        cls.attribute = log_usage()(cls.attribute)

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: the gradient is multiplied by the tokens."""
        return True

    def _answer(self, question: Question, formula: Formula, *, graph: bool) -> Any:
        """Maps (batch, targets, height, width), or scores (batch, targets, tokens); a tuple if the inputs are one."""
        answer = self._maps(question, formula, graph)
        return (answer,) if isinstance(question.inputs, tuple) else answer

    def _answer_one(self, question: Question, formula: Formula, *, graph: bool) -> Any:
        """A map (batch, 1, height, width), or scores (batch, tokens); a tuple if the inputs are one."""
        answer = self._maps(question, formula, graph)
        answer = answer if answer.dim() == 4 else answer[:, 0]
        return (answer,) if isinstance(question.inputs, tuple) else answer

    def _maps(self, question: Question, formula: Formula, graph: bool) -> Tensor:
        inputs = checked_inputs(question.inputs)
        forward = uncompiled(self.forward_func)
        root = root_module(forward, None if self._finds_layer else self.layer)
        anatomy = _found(root) if self._finds_layer else _anatomy_if_known(root)
        classes = None if root is None or root is not forward else known_classes(root)
        scores = scores_of(question.targets, inputs[0].shape[0], classes, inputs[0].device)
        image_size = image_size_of(inputs[0], anatomy)
        site = self._site(anatomy, question.attribute_to_layer_input)
        asks_for_latent = any(isinstance(score, ConceptScore) for score in scores)
        latent = anatomy.latent if anatomy is not None and asks_for_latent else None
        arguments = (*inputs, *as_tuple(question.additional_forward_args))
        known = anatomy if anatomy is not None and site == anatomy.tokens else None
        found = _from_attention(formula, scores, forward, root, arguments, known, latent)
        if found is None:
            with TokenTail(forward, arguments, site, latent=latent, graph=graph) as tail:
                for score in scores:
                    score(tail.first)  # a target the output cannot answer is an error before any gradient
                layout = self._layout(tail.tokens, image_size, anatomy, site, question.return_tokens)
                parts, alive = formula.of_tail(tail, scores, layout)
        else:
            tokens, parts, alive = found
            layout = self._layout(tokens, image_size, anatomy, site, question.return_tokens)
        _check_result(parts, alive)
        parts = parts.transpose(0, 1)
        return parts if question.return_tokens else layout.to_maps(parts)

    def _site(self, anatomy: TokenAnatomy | None, at_input: bool) -> Site:
        if anatomy is None or not self._finds_layer:
            return Site(self.layer, at_input=at_input)
        if at_input:
            raise ValueError("`attribute_to_layer_input` is for a `layer` that is given; here the layer is found.")
        return anatomy.tokens

    def _layout(
        self,
        tokens: Tensor,
        image_size: tuple[int, int] | None,
        anatomy: TokenAnatomy | None,
        site: Site,
        return_tokens: bool,
    ) -> TokenLayout:
        try:
            return token_layout(tokens, image_size, anatomy, site.module)
        except ValueError:
            if self._finds_layer or tokens.dim() != 3:
                raise
        try:  # a given layer may hold other tokens than the known ones
            return token_layout(tokens, image_size, None, site.module)
        except ValueError:
            if not return_tokens:
                raise
        return TokenLayout()


def _from_attention(
    formula: Formula,
    scores: Sequence[Score],
    forward: Callable[..., Any],
    root: nn.Module | None,
    arguments: tuple[Any, ...],
    anatomy: TokenAnatomy | None,
    latent: Site | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The tokens and the formula's results, if the model's last attention is known."""
    if root is None or anatomy is None:
        return None
    with borrowed(root_module(forward), arguments) as given:
        tail = attention_tail_of(forward, root, given, anatomy, latent)
        if tail is None:
            return None
        try:
            parts, alive = formula.of_attention(tail, scores)
            return tail.tokens, parts, alive
        except UnsuitableError:
            return None


def _found(root: nn.Module | None) -> TokenAnatomy:
    if root is None:
        raise ValueError(
            "Without `layer`, `forward_func` must be a model, so that the layer can be found. Pass the model, or the "
            "`layer` whose output is what enters the last attention."
        )
    return find_anatomy(root)


def _anatomy_if_known(root: nn.Module | None) -> TokenAnatomy | None:
    try:
        return None if root is None else find_anatomy(root)
    except ValueError:
        return None


def _check_result(parts: Tensor, alive: Tensor) -> None:
    finite = torch.isfinite(parts).all(-1).all(0)
    if not bool(finite.all()):
        raise ValueError(
            f"The model's gradient is NaN or infinite for sample(s) {samples_where(~finite)}, although the inputs are "
            "finite. Are the weights finite? In float16 the model may overflow: use bfloat16 or float32."
        )
    alive = alive.all(0)
    if not bool(alive.all()):
        raise ValueError(
            f"No patch token has a gradient for sample(s) {samples_where(~alive)}: the score asked for does not "
            "depend on what these tokens bring into the attention at this layer, and the map would be blank. Usual "
            "causes: the layer lies behind the last attention that mixes tokens (pass the norm in front of it), the "
            "head's weights for this target are zero (an untrained head), or gradients are cut (torch.no_grad or "
            "detach in the model's forward, or reentrant gradient checkpointing)."
        )
