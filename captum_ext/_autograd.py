"""The formulas by automatic differentiation from the tokens on, for any model.

Each takes a `TokenPass`, which evaluates what follows the tokens, and K score functions. Each returns scores
(K, batch, tokens) in float32 or wider. One copy of the batch is evaluated at a time, in the shape the model had it in,
so that samples that meet in the model (batch statistics, similarities over the batch) meet as they did.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from adapters.recording import Prediction, TokenPass

from ._targets import Score


def relevance(tokens: Tensor, gradients: Tensor, channels: int = -1) -> Tensor:
    """`S_i = sum_j T_ij G_ij`, (batch, tokens), summed in float32 or wider."""
    wide = torch.promote_types(gradients.dtype, torch.float32)
    products = (tokens.to(wide) * gradients.to(wide)).sum(channels)
    return products.flatten(1) if products.dim() > 1 else products[:, None]


def gradient_relevance(run: TokenPass, scores: Sequence[Score]) -> Tensor:
    """CDAM: `S_i = sum_j T_ij df/dT_ij`."""
    tokens = run.tokens.clone().requires_grad_()
    found = _gradients(scores, run.checked(tokens), tokens)
    return torch.stack([relevance(run.tokens, gradient, run.channels) for gradient in found])


def smooth_relevance(
    run: TokenPass,
    scores: Sequence[Score],
    *,
    noise: Callable[[Tensor], object],
    deviation: float | Tensor,
    samples: int,
) -> Tensor:
    """Smooth CDAM: the mean over samples of `sum_j T'_ij df(T')/dT'_ij`, `T' = T + deviation * noise`.

    Args:
        run: The model, read at its tokens.
        scores: The targets' score functions.
        noise: Fills a tensor (tokens, channels) with standard normals; one a sample, the same for the whole batch.
        deviation: The noise's standard deviation, a number or (batch, 1, 1).
        samples: How many to average.
    """
    with torch.no_grad():
        run.checked(run.tokens)
    total: list[Tensor | float] = [0.0] * len(scores)
    drawn = run.tokens.new_empty(run.tokens.shape[1:], dtype=_wide(run.tokens))  # not in the tokens' memory order
    for _ in range(samples):
        noise(drawn)
        noisy = (run.tokens + deviation * drawn).to(run.tokens.dtype).requires_grad_()
        for target, gradient in enumerate(_gradients(scores, run.predict(noisy), noisy)):
            total[target] = total[target] + relevance(noisy.detach(), gradient, run.channels) / samples
    return torch.stack([torch.as_tensor(part) for part in total])


def integrated_relevance(
    run: TokenPass, scores: Sequence[Score], *, baseline: Tensor, weights: Sequence[float], alphas: Sequence[float]
) -> Tensor:
    """Integrated CDAM: `sum_j (T_ij - T~_ij) sum_k w_k df(T~ + a_k (T - T~))/dT_ij`.

    Args:
        run: The model, read at its tokens.
        scores: The targets' score functions.
        baseline: `T~`, of the tokens' shape.
        weights: `w_k`, the step sizes of the quadrature.
        alphas: `a_k`, its points in [0, 1].
    """
    with torch.no_grad():
        run.checked(run.tokens)
    wide = _wide(run.tokens)
    difference = run.tokens - baseline
    total: list[Tensor | float] = [0.0] * len(scores)
    for alpha, weight in zip(alphas, weights, strict=True):
        step = (baseline.to(wide) + alpha * difference.to(wide)).to(run.tokens.dtype).requires_grad_()
        for target, gradient in enumerate(_gradients(scores, run.predict(step), step)):
            total[target] = total[target] + weight * relevance(difference, gradient, run.channels)
    return torch.stack([torch.as_tensor(part) for part in total])


def scores_at(run: TokenPass, scores: Sequence[Score], tokens: Tensor) -> Tensor:
    """The scores themselves for other tokens, (targets, batch)."""
    with torch.no_grad():
        prediction = run.predict(tokens)
        return torch.stack([score(prediction) for score in scores])


def _gradients(scores: Sequence[Score], prediction: Prediction, tokens: Tensor) -> Iterator[Tensor]:
    """The gradient of each score with respect to the tokens; zeros where a score does not depend on them."""
    for left, score in zip(range(len(scores) - 1, -1, -1), scores, strict=True):
        with torch.enable_grad():
            total = score(prediction).sum()
        if not total.requires_grad:
            yield torch.zeros_like(tokens)
            continue
        (gradient,) = torch.autograd.grad(total, tokens, retain_graph=left > 0, allow_unused=True)
        yield torch.zeros_like(tokens) if gradient is None else gradient


def _wide(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)
