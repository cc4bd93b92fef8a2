"""Integrated CDAM: CDAM along the path from a baseline to the tokens."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
from captum.attr._utils.approximation_methods import SUPPORTED_METHODS, approximation_parameters
from torch import Tensor

from adapters.checks import positive_int
from adapters.recording import LastAttention, TokenPass

from ._autograd import integrated_relevance, scores_at
from ._checks import OnError
from ._closed_form import closed_form_relevance, closed_form_scores
from ._perturbed_tokens import InterpolatedTokens
from ._targets import Score, Target
from ._token_attribution import Request, Tensors, TokenAttribution

Baseline = Tensor | float | None


class IntegratedCDAM(TokenAttribution):
    """Integrated CDAM: integrated gradients from baseline tokens to the tokens that enter the last attention.

    `S_i = sum_j (T_ij - T~_ij) * (1/n) sum_{k=1..n} df(T~ + (k/n)(T - T~))/dT_ij`. Summed over all tokens, prefix
    tokens too, the scores approach `f(T) - f(T~)` as n grows (completeness).

    Source: Brocki et al., Class-Discriminative Attention Maps for Vision Transformers, TMLR 2024, equation 6.
    Differs from the paper: none by default; all quadratures and baselines of Captum's IntegratedGradients on request.
    Captum's LayerIntegratedGradients cannot express it, because its baselines live in the model's input space.

    Args:
        forward_func: A model, or any function that returns its output: a tensor, tuple, dictionary or ModelOutput.
            The model runs in evaluation mode and is restored afterwards.
        layer: The module whose output is the tokens, or its name: (batch, tokens, channels) or a feature map
            (batch, channels, height, width). None: they are what the last attention reads, found in each call.
        output: Which tensor to explain, where the model returns several: a name, an index, a tuple of them or a
            name with dots for what is nested, or a function of what it returns. None: by name, as `logits`; several
            that could be meant are an error, which lists them.

    Raises:
        TypeError: if `forward_func` is not callable or `layer` not a module.
        ValueError: if `layer` or `attention` is no part of the model. That there is no attention is an error of
            `attribute`, whose message names a layer.

    Example:
        >>> import timm, torch
        >>> from captum_ext import IntegratedCDAM
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> images = torch.randn(2, 3, 224, 224)
        >>> heat, delta = IntegratedCDAM(model).attribute(images, 7, n_steps=20, return_convergence_delta=True)
        >>> heat.shape, delta.shape
        (torch.Size([2, 1, 14, 14]), torch.Size([2]))
    """

    def has_convergence_delta(self) -> bool:
        """True: `return_convergence_delta` tells how far the scores are from completeness."""
        return True

    @overload
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        baselines: Baseline = None,
        n_steps: int = 50,
        method: str = "riemann_right",
        internal_batch_size: int | None = None,
        return_convergence_delta: Literal[False] = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors: ...

    @overload
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        baselines: Baseline = None,
        n_steps: int = 50,
        method: str = "riemann_right",
        internal_batch_size: int | None = None,
        *,
        return_convergence_delta: Literal[True],
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> tuple[Tensors, Tensor]: ...

    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        baselines: Baseline = None,
        n_steps: int = 50,
        method: str = "riemann_right",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors | tuple[Tensors, Tensor]:
        """Explain one target for each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: What to explain, as in Captum: a class for all samples, a list or 1-D tensor with one for each, a
                tuple of indices for outputs of more dimensions, None for outputs of one value; a function of one
                sample's output that returns a number, or a list with one for each sample; or a ConceptTarget.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.
            baselines: Baseline tokens `T~`: a number, or a tensor that broadcasts to the tokens (batch, tokens,
                channels). None: zeros.
            n_steps: Number of points on the path.
            method: One of Captum's quadratures: "riemann_right" (the paper's), "riemann_left", "riemann_middle",
                "riemann_trapezoid", "gausslegendre".
            internal_batch_size: The most samples to evaluate at once, steps times batch. None: as many as keep memory
                independent of `n_steps`. It does not change the result.
            return_convergence_delta: Also return how far the scores are from completeness.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            For images (batch, 1, height, width), one score a patch; for sequences, or with `return_tokens`,
            (batch, tokens). Signed, in the unit of the score explained, in float32 or wider. A tuple holding it if
            `inputs` is a tuple, as Captum's metrics expect. With `return_convergence_delta` a pair, the second being
            (batch,): the sum of the scores over all tokens less `f(T) - f(T~)`.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if a target is missing, of the wrong length or out of range, if inputs or gradients are not
                finite, if no patch has a gradient, or if an argument is out of range.
        """
        request = Request(inputs, [target], additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        path = _Path(baselines, n_steps, method, internal_batch_size, return_convergence_delta)
        answer: Tensors = self._attribute_one(request, path)
        return (answer, _where_explained(path.deltas[0], answer)) if return_convergence_delta else answer

    @overload
    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        baselines: Baseline = None,
        n_steps: int = 50,
        method: str = "riemann_right",
        internal_batch_size: int | None = None,
        return_convergence_delta: Literal[False] = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors: ...

    @overload
    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        baselines: Baseline = None,
        n_steps: int = 50,
        method: str = "riemann_right",
        internal_batch_size: int | None = None,
        *,
        return_convergence_delta: Literal[True],
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> tuple[Tensors, Tensor]: ...

    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        baselines: Baseline = None,
        n_steps: int = 50,
        method: str = "riemann_right",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors | tuple[Tensors, Tensor]:
        """Explain several targets of each sample along one path, from one pass through the model.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            targets: A list of targets, each as for `attribute`.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.
            baselines: Baseline tokens `T~`: a number, or a tensor that broadcasts to the tokens (batch, tokens,
                channels). None: zeros.
            n_steps: Number of points on the path.
            method: One of Captum's quadratures: "riemann_right" (the paper's), "riemann_left", "riemann_middle",
                "riemann_trapezoid", "gausslegendre".
            internal_batch_size: The most samples to evaluate at once, steps times batch. None: as many as keep memory
                independent of `n_steps`. It does not change the result.
            return_convergence_delta: Also return how far the scores are from completeness.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            (batch, targets, height, width); for sequences, or with `return_tokens`, (batch, targets, tokens).
            With `return_convergence_delta` a pair, the second being (batch, targets).

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if a target is missing, of the wrong length or out of range, if inputs or gradients are not
                finite, or if no patch has a gradient.
        """
        request = Request(inputs, targets, additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        path = _Path(baselines, n_steps, method, internal_batch_size, return_convergence_delta)
        answer: Tensors = self._attribute_many(request, path)
        return (answer, _where_explained(path.deltas.T, answer)) if return_convergence_delta else answer


@dataclass
class _Path:
    """The formula with its arguments; after it has run, the convergence deltas (targets, batch) if they are wanted."""

    baselines: Baseline
    n_steps: int
    method: str
    internal_batch_size: int | None
    wants_delta: bool

    def __post_init__(self) -> None:
        self.weights, self.alphas = quadrature(self.method, positive_int("n_steps", self.n_steps))
        if self.internal_batch_size is not None:
            positive_int("internal_batch_size", self.internal_batch_size)
        if isinstance(self.baselines, tuple) and len(self.baselines) == 1:  # as NoiseTunnel passes them
            self.baselines = self.baselines[0]
        if isinstance(self.baselines, bool) or not isinstance(self.baselines, Tensor | float | int | None):
            raise TypeError(f"Expected `baselines` to be a tensor, a number or None, got {type(self.baselines)}.")

    def by_autograd(self, run: TokenPass, scores: Sequence[Score]) -> Tensor:
        self._copies(run.tokens)
        baseline = self._baseline(run.tokens)
        parts = integrated_relevance(run, scores, baseline=baseline, weights=self.weights, alphas=self.alphas)
        if self.wants_delta:
            ends = (scores_at(run, scores, tokens).to(parts.dtype) for tokens in (baseline, run.tokens))
            start, end = ends
            self.deltas = _deltas(parts, end - start)
        return parts

    def in_closed_form(self, last: LastAttention, scores: Sequence[Score]) -> Tensor:
        baseline = None if self.baselines is None else self._baseline(last.tokens)
        copies = InterpolatedTokens(self.alphas, self.weights, baseline, self._copies(last.tokens))
        parts = closed_form_relevance(last, scores, copies)
        if self.wants_delta:
            ends = InterpolatedTokens([0.0, 1.0], [0.0, 0.0], baseline, 2)
            start, end = closed_form_scores(last, scores, ends).to(parts.dtype).unbind(1)
            self.deltas = _deltas(parts, end - start)
        return parts

    def _baseline(self, tokens: Tensor) -> Tensor:
        shape = tuple(tokens.shape)
        baseline = torch.as_tensor(0.0 if self.baselines is None else self.baselines).to(tokens)
        try:
            baseline = baseline.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"Expected `baselines` to broadcast to the tokens of shape {shape}, got shape {tuple(baseline.shape)}. "
                "They are tokens, not inputs of the model."
            ) from None
        if not bool(torch.isfinite(baseline).all()):
            raise ValueError("Expected finite `baselines`, got NaN or infinity.")
        return baseline

    def _copies(self, tokens: Tensor) -> int | None:
        """How many steps to evaluate at once; None: as many as keep memory independent of their number."""
        if self.internal_batch_size is None:
            return None
        batch = tokens.shape[0]
        if self.internal_batch_size < batch:
            warnings.warn(
                f"`internal_batch_size` {self.internal_batch_size} is less than the batch of {batch}; one step of the "
                "whole batch is evaluated at once.",
                stacklevel=2,
            )
        return max(1, self.internal_batch_size // batch)


def _deltas(parts: Tensor, differences: Tensor) -> Tensor:
    """`sum_i S_i - (f(T) - f(T~))`, (targets, predictions), of scores (targets, batch, tokens)."""
    sums, predictions = parts.sum(-1), differences.shape[1]
    if predictions not in (1, sums.shape[1]):
        raise ValueError(
            f"Which of the {sums.shape[1]} samples belong to which of the {predictions} predictions is not known, so "
            "that there is no convergence delta. Explain one bag of samples at a time."
        )
    return (sums if predictions == sums.shape[1] else sums.sum(1, keepdim=True)) - differences


def _where_explained(deltas: Tensor, maps: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Deltas (batch,) or (batch, targets), NaN where the maps are."""
    maps = maps[0] if isinstance(maps, tuple) else maps
    failed = maps.isnan().flatten(deltas.dim()).any(-1)
    return deltas.masked_fill(failed, torch.nan) if failed.shape == deltas.shape else deltas


def quadrature(method: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Weights and points in [0, 1] of one of Captum's quadratures.

    The points are Captum's in double precision; its own Riemann points are rounded to float32, an error of 3e-8 that
    a comparison in float64 sees.
    """
    if method not in SUPPORTED_METHODS:
        raise ValueError(f"Expected `method` to be one of {SUPPORTED_METHODS}, got {method!r}.")
    if n_steps < 2 and method != "gausslegendre":
        raise ValueError(f"Expected `n_steps` to be at least 2 for {method!r}, got {n_steps}.")
    step_sizes, alphas = approximation_parameters(method)
    points = {
        "riemann_left": np.arange(n_steps) / n_steps,
        "riemann_right": np.arange(1, n_steps + 1) / n_steps,
        "riemann_middle": (np.arange(n_steps) + 0.5) / n_steps,
        "riemann_trapezoid": np.linspace(0, 1, n_steps),
    }.get(method)
    return step_sizes(n_steps), alphas(n_steps) if points is None else points.tolist()
