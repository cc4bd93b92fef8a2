"""The formulas: token relevance by gradient times token, its noise average and its path integral.

Each takes a `TokenTail`, which evaluates what follows the tokens, and K score functions. Each returns scores
(K, batch, tokens) in float32 or wider, and whether any patch received a gradient at all, (K, batch).

These three functions hold for any model. The same sums for a model whose last attention can be taken apart are in
`_attention_relevance.py`; `_token_attribution.py` chooses.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from adapters import Readout, TokenLayout, TokenTail

Score = Callable[[Readout], Tensor]


def relevance(tokens: Tensor, gradients: Tensor, channels: int = -1) -> Tensor:
    """`S_i = sum_j T_ij G_ij`, (batch, tokens), summed in float32 or wider."""
    wide = torch.promote_types(gradients.dtype, torch.float32)
    return (tokens.to(wide) * gradients.to(wide)).sum(channels).flatten(1)


def gradient_relevance(tail: TokenTail, scores: Sequence[Score], layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """CDAM: `S_i = sum_j T_ij df/dT_ij`."""
    gradients = list(_gradients(scores, tail.first, tail.tokens))
    parts = torch.stack([relevance(tail.tokens.detach(), g, layout.channels) for g in gradients])
    return parts, torch.stack([_reaches_patches(g, layout) for g in gradients])


def smooth_relevance(
    tail: TokenTail,
    scores: Sequence[Score],
    layout: TokenLayout,
    *,
    noise: Callable[[Tensor], object],
    deviation: float | Tensor,
    samples: int,
    copies: int,
) -> tuple[Tensor, Tensor]:
    """Smooth CDAM: the mean over samples of `sum_j T'_ij df(T')/dT'_ij`, `T' = T + deviation * noise`.

    Args:
        tail: What follows the tokens.
        scores: The targets' score functions.
        layout: How the tokens lie.
        noise: Fills a tensor (tokens, channels) with standard normals; one a sample, the same for the whole batch.
        deviation: The noise's standard deviation, a number or (batch, 1, 1).
        samples: How many to average.
        copies: How many to evaluate at once.
    """
    tokens = tail.tokens.detach()
    wide = torch.promote_types(tokens.dtype, torch.float32)
    total = _Mean(tokens, layout)
    for first in range(0, samples, copies):
        drawn = tokens.new_empty((min(copies, samples - first), *tokens.shape[1:]), dtype=wide)
        for one in drawn:
            noise(one)
        noisy = (tokens + deviation * drawn[:, None]).to(tokens.dtype).flatten(0, 1).requires_grad_()
        for target, gradients in enumerate(_gradients(scores, tail.read(noisy), noisy)):
            total.add(target, noisy.detach(), gradients, [1 / samples] * len(drawn))
    return total.result()


def integrated_relevance(
    tail: TokenTail,
    scores: Sequence[Score],
    layout: TokenLayout,
    *,
    baseline: Tensor,
    weights: Sequence[float],
    alphas: Sequence[float],
    copies: int,
) -> tuple[Tensor, Tensor]:
    """Integrated CDAM: `sum_j (T_ij - T~_ij) sum_k w_k df(T~ + a_k (T - T~))/dT_ij`.

    Args:
        tail: What follows the tokens.
        scores: The targets' score functions.
        layout: How the tokens lie.
        baseline: `T~`, of the tokens' shape.
        weights: `w_k`, the step sizes of the quadrature.
        alphas: `a_k`, its points in [0, 1].
        copies: How many steps to evaluate at once.
    """
    tokens = tail.tokens.detach()
    difference = tokens - baseline
    wide = torch.promote_types(tokens.dtype, torch.float32)
    total = _Mean(tokens, layout)
    for first in range(0, len(alphas), copies):
        steps = torch.tensor(alphas[first : first + copies], device=tokens.device, dtype=wide)
        path = steps.view(-1, *[1] * tokens.dim()) * difference.to(wide) + baseline.to(wide)
        path = path.to(tokens.dtype).flatten(0, 1).requires_grad_()
        ahead = difference.repeat(len(steps), *[1] * (tokens.dim() - 1))
        for target, gradients in enumerate(_gradients(scores, tail.read(path), path)):
            total.add(target, ahead, gradients, weights[first : first + copies])
    return total.result()


class _Mean:
    """Running weighted sums of relevance, one row a target."""

    def __init__(self, tokens: Tensor, layout: TokenLayout) -> None:
        self._batch = tokens.shape[0]
        self._layout = layout
        self._scores: dict[int, Tensor] = {}
        self._alive: dict[int, Tensor] = {}

    def add(self, target: int, tokens: Tensor, gradients: Tensor, weights: Sequence[float]) -> None:
        """Add copies: tokens and gradients (copies * batch, ...), one weight a copy."""
        parts = relevance(tokens, gradients, self._layout.channels).unflatten(0, (-1, self._batch))
        part = (parts * parts.new_tensor(weights).view(-1, 1, 1)).sum(0)
        alive = _reaches_patches(gradients, self._layout).unflatten(0, (-1, self._batch)).any(0)
        self._scores[target] = part + self._scores.get(target, 0)
        self._alive[target] = alive | self._alive.get(target, False)

    def result(self) -> tuple[Tensor, Tensor]:
        """Scores (targets, batch, tokens) and whether any patch received a gradient (targets, batch)."""
        return torch.stack(list(self._scores.values())), torch.stack(list(self._alive.values()))


def _gradients(scores: Sequence[Score], readout: Readout, tokens: Tensor) -> Iterator[Tensor]:
    """The gradient of each score with respect to the tokens; zeros where a score does not depend on them."""
    for left, score in zip(range(len(scores) - 1, -1, -1), scores, strict=True):
        total = score(readout).sum()
        if not total.requires_grad:
            yield torch.zeros_like(tokens)
            continue
        (gradient,) = torch.autograd.grad(total, tokens, retain_graph=left > 0, allow_unused=True)
        yield torch.zeros_like(tokens) if gradient is None else gradient


def _reaches_patches(gradients: Tensor, layout: TokenLayout) -> Tensor:
    """(batch,) booleans: is the gradient of any token but the prefix tokens other than zero?"""
    if gradients.dim() == 3 and gradients.shape[1] > 1:
        gradients = gradients[:, max(layout.prefix, 0 if layout.grid else 1) :]
    return gradients.flatten(1).ne(0).any(1)
