"""What the maps of attention weights share: the run, the row that is read, the shape of the result."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

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
from ._token_attribution import Tensors


class AttentionAttribution(Attribution):  # type: ignore[misc] # captum is untyped
    """Base of the maps of attention weights: a formula of matrices, one a layer, and of the row that is read.

    Args:
        forward_func: The model, a method of it or a partial of one.
    """

    _of_gradients: ClassVar[bool]  # are the matrices `positive_relevance` of a target, and not the mean weights?
    _last_only: ClassVar[bool]  # is the last layer enough?

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        if not callable(forward_func):
            raise TypeError(f"Expected `forward_func` to be a model, got {type(forward_func)}.")
        _found(root_module(uncompiled(forward_func)), type(self).__name__)
        super().__init__(forward_func)

    @staticmethod
    @abstractmethod
    def _formula(matrices: Sequence[Tensor], row: Tensor) -> Tensor:
        """The scores of all tokens (batch, tokens), of matrices (batch, tokens, tokens) and a row (batch, rows)."""

    @log_usage()  # type: ignore[untyped-decorator] # captum is untyped
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_tokens: bool = False,
    ) -> Tensors:
        """Explain one target for each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: What to explain, as for CDAM: a class for all samples, a list or 1-D tensor with one for each, a
                tuple of indices for outputs of more dimensions, None for outputs of one value; or a ConceptTarget.
                AttentionMap and AttentionRollout accept any: attention does not depend on it.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.

        Returns:
            For images (batch, 1, height, width), one score a patch; for sequences, or with `return_tokens`,
            (batch, tokens). At least 0, in float32 or wider. A tuple holding it if `inputs` is a tuple.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if inputs are not finite or no images, or if an attention that is read is not known here (LoRA,
                hooks on it, quantised); the message names it. Where the target matters: if it is missing, of the wrong
                length or out of range, or if no attention has a finite gradient.
        """
        given: tuple[Tensor, ...] = checked_inputs(inputs)
        forward = uncompiled(self.forward_func)
        root, anatomy = _found(root_module(forward), type(self).__name__)
        classes = known_classes(root) if root is forward else None
        scores = scores_of([target], len(given[0]), classes, given[0].device) if self._of_gradients else []
        image_size = image_size_of(given[0], anatomy)
        arguments = (*given, *as_tuple(additional_forward_args))
        with borrowed(root, arguments) as lent:
            run = AttentionWeights(forward, root, lent, anatomy, last_only=self._last_only)
            matrices, last = _relevances(run, anatomy, *scores) if scores else _means(run, self._last_only)
            with exactly(last):
                tokens = self._formula(matrices, row_read(last, run.class_token, anatomy.prefix))
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


def _means(run: AttentionWeights, last_only: bool) -> tuple[list[Tensor], Tensor]:
    """The weights of each layer, means over the heads, and the last ones: only the class token's row where it does."""
    means = run.seen(lambda weights: weights.mean(1), 1 if last_only and run.class_token else None)
    return means, means[-1]


def _relevances(run: AttentionWeights, anatomy: TokenAnatomy, score: Score) -> tuple[list[Tensor], Tensor]:
    """The relevance of each layer, and the last weights, means over the heads."""
    weights, readout = run.with_readout(anatomy.latent if isinstance(score, ConceptScore) else None)
    gradients = _gradients(score, readout, weights)
    with exactly(weights[-1]):
        return [positive_relevance(*pair) for pair in zip(weights, gradients, strict=True)], weights[-1].mean(1)


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
