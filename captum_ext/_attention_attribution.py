"""What the maps of attention weights share: the run, the row that is read, the shape of the result."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from adapters import (
    AttentionWeights,
    Readout,
    TokenAnatomy,
    borrowed,
    find_anatomy,
    known_classes,
    root_module,
    token_layout,
    uncompiled,
)

from ._checks import as_tuple, checked_inputs, image_size_of, samples_where
from ._features import exactly
from ._targets import ConceptScore, Score, Target, scores_of

Formula = Callable[[Sequence[Tensor], Tensor], Tensor]


class AttentionAttribution(Attribution):  # type: ignore[misc] # captum is untyped
    """Base of the maps of attention weights.

    Args:
        forward_func: The model, a method of it or a partial of one.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        if not callable(forward_func):
            raise TypeError(f"Expected `forward_func` to be a model, got {type(forward_func)}.")
        _found(root_module(uncompiled(forward_func)), type(self).__name__)
        super().__init__(forward_func)

    def __init_subclass__(cls) -> None:
        """Log usage as Captum's own classes do: NoiseTunnel calls `attribute.__wrapped__`, which this provides."""
        super().__init_subclass__()
        if "attribute" in vars(cls):
            cls.attribute = log_usage()(cls.attribute)

    def _of_weights(
        self,
        formula: Formula,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any,
        *,
        return_tokens: bool,
        last_only: bool,
    ) -> Any:
        """The map of a formula of the weights, each the mean over the heads, and the row that is read."""

        def explain(run: AttentionWeights, anatomy: TokenAnatomy, _: list[Score]) -> Tensor:
            rows = 1 if last_only and run.class_token else None
            means = run.seen(lambda weights: weights.mean(1), rows)
            with exactly(means[-1]):
                return formula(means, row_read(means[-1], run.class_token, anatomy.prefix))

        return self._answer(explain, inputs, [], additional_forward_args, return_tokens, last_only)

    def _of_gradients(
        self,
        formula: Formula,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target,
        additional_forward_args: Any,
        *,
        return_tokens: bool,
        last_only: bool,
    ) -> Any:
        """The map of a formula of the weights, each `positive_relevance`, and the row that is read."""

        def explain(run: AttentionWeights, anatomy: TokenAnatomy, scores: list[Score]) -> Tensor:
            (score,) = scores
            weights, readout = run.with_readout(anatomy.latent if isinstance(score, ConceptScore) else None)
            gradients = _gradients(score, readout, weights)
            with exactly(weights[-1]):
                row = row_read(weights[-1].mean(1), run.class_token, anatomy.prefix)
                parts = [positive_relevance(*pair) for pair in zip(weights, gradients, strict=True)]
                return formula(parts, row)

        return self._answer(explain, inputs, [target], additional_forward_args, return_tokens, last_only)

    def _answer(
        self,
        explain: Callable[[AttentionWeights, TokenAnatomy, list[Score]], Tensor],
        inputs: Tensor | tuple[Tensor, ...],
        targets: list[Target],
        additional_forward_args: Any,
        return_tokens: bool,
        last_only: bool,
    ) -> Any:
        given = checked_inputs(inputs)
        forward = uncompiled(self.forward_func)
        root, anatomy = _found(root_module(forward), type(self).__name__)
        classes = known_classes(root) if root is forward else None
        scores = scores_of(targets, given[0].shape[0], classes, given[0].device) if targets else []
        image_size = image_size_of(given[0], anatomy)
        arguments = (*given, *as_tuple(additional_forward_args))
        with borrowed(root, arguments) as lent:
            run = AttentionWeights(forward, root, lent, anatomy, last_only=last_only)
            tokens = explain(run, anatomy, scores)
        finite = torch.isfinite(tokens).all(-1)
        if not bool(finite.all()):
            raise ValueError(
                f"The model's attention or its gradient is NaN or infinite for sample(s) {samples_where(~finite)}, "
                "although the inputs are finite. Are the weights finite? In float16 the model may overflow: use "
                "bfloat16 or float32."
            )
        layout = token_layout(tokens[..., None], image_size, anatomy, root)
        answer = tokens if return_tokens or layout.grid is None else layout.to_maps(tokens[:, None])
        return (answer,) if isinstance(inputs, tuple) else answer


def row_read(weights: Tensor, class_token: bool, prefix: int) -> Tensor:
    """From which rows of the last attention a map is read, (batch, rows) with sum 1.

    The class token's; without one that the output reads, all of the patches or words. Those that nobody attends to
    are padding.

    Args:
        weights: The last attention's, (batch, rows, tokens).
        class_token: Does the output read a class token?
        prefix: How many first tokens are none of the patches or words.
    """
    rows = weights.new_zeros(weights.shape[:2])
    if class_token:
        rows[:, 0] = 1
        return rows
    rows[:, prefix:] = (weights[..., prefix:] > 0).any(1).to(rows)
    return rows / rows.sum(1, keepdim=True)


def positive_relevance(weights: Tensor, gradient: Tensor) -> Tensor:
    """`mean_heads((gradient * weights)+)`, (batch, tokens, tokens)."""
    return (gradient * weights).clamp_(min=0).mean(1)


def through(row: Tensor, matrix: Tensor) -> Tensor:
    """A row vector times a matrix, in each sample."""
    return (row[:, None] @ matrix)[:, 0]


def _gradients(score: Score, readout: Readout, weights: Sequence[Tensor]) -> list[Tensor]:
    """Those of the score."""
    with torch.enable_grad():
        values = score(readout)
    found: Sequence[Tensor | None] = [None] * len(weights)
    if values.requires_grad:
        found = torch.autograd.grad(values.sum(), weights, allow_unused=True)
    gradients = [torch.zeros_like(a) if g is None else g for a, g in zip(weights, found, strict=True)]
    alive = torch.stack([(gradient != 0).flatten(1).any(1) for gradient in gradients]).any(0)
    if not bool(alive.all()):
        raise ValueError(
            f"No attention has a gradient for sample(s) {samples_where(~alive)}, and the map would be blank. Usual "
            "causes: the head's weights for this target are zero (an untrained head), or gradients are cut "
            "(torch.no_grad or detach in the model's forward, or reentrant gradient checkpointing)."
        )
    return gradients


def _found(root: nn.Module | None, method: str) -> tuple[nn.Module, TokenAnatomy]:
    if root is None:
        raise ValueError(f"{method} reads the attention of a model: pass the model itself, not a function.")
    try:
        return root, find_anatomy(root)
    except ValueError as error:
        raise ValueError(
            f"{method} reads the attention weights of one transformer that is known here (timm VisionTransformer, Eva "
            "and Beit, torchvision VisionTransformer, transformers ViT, DeiT, Dinov2, CLIP vision, BERT, RoBERTa and "
            f"DistilBERT, DINO); this {type(root).__name__} holds none of them, or several. Use CDAM with `layer=`, "
            "or pass the one transformer."
        ) from error
