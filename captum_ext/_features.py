"""Keys and values of all tokens in many copies, without writing them down."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class CopyLayout(NamedTuple):
    """How m copies of a batch of tensors for the first r tokens lie in memory.

    By samples, as a model takes them: (m * batch, heads, r, ...), the batch repeated copy after copy.
    By rows, to be multiplied with what all copies share: (batch, heads, m * r, ...).
    By copies, to be multiplied with what the batch shares: (m, batch * heads * r, ...).
    """

    number: int
    batch: int
    rows: int

    def as_rows(self, samples: Tensor) -> Tensor:
        """By samples to by rows."""
        return samples.view(self.number, self.batch, *samples.shape[1:]).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def as_samples(self, rows: Tensor) -> Tensor:
        """By rows to by samples."""
        return self._by_number(rows).permute(2, 0, 1, 3, 4).flatten(0, 1)

    def as_copies(self, rows: Tensor) -> Tensor:
        """By rows to by copies."""
        return self._by_number(rows).permute(2, 0, 1, 3, 4).flatten(1, 3)

    def from_copies(self, copies: Tensor) -> Tensor:
        """By copies to by rows."""
        parts = copies.view(self.number, self.batch, -1, self.rows, copies.shape[-1])
        return parts.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def by_copy(self, rows: Tensor) -> Tensor:
        """Sums over the r tokens of (batch, m * r, ...), as (m, batch, ...)."""
        summed: Tensor = rows.unflatten(1, (self.number, self.rows)).sum(2)
        return summed.transpose(0, 1)

    def times(self, number: int) -> "CopyLayout":
        """The layout of so many times as many copies, one set after the other."""
        return self._replace(number=self.number * number)

    def _by_number(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], self.number, self.rows, rows.shape[-1])


class Features(ABC):
    """Keys or values of all tokens in m copies. `t` is what the gradient is multiplied with, `W` the projection."""

    @abstractmethod
    def products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Products (batch, heads, m * r, tokens) of vectors (batch, heads, m * r, width), with the features and `t W`.

        The first up to a constant for each vector, which a softmax does not see.
        """

    @abstractmethod
    def times(self, number: int) -> Self:
        """The features of so many times as many copies, one set after the other."""

    @abstractmethod
    def pull(self, gradients: Tensor, vectors: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradients of the products: the tokens' relevance (m, batch, tokens), the gradients of the vectors.

        Args:
            gradients: (batch, heads, m * r, tokens), which sum to 0 over the tokens.
            vectors: Those of `products`.
            along: The second result of `products`.
        """


class LinearFeatures(Features):
    """Features that are linear in the tokens."""

    copies: CopyLayout

    @abstractmethod
    def mix(self, weights: Tensor) -> Tensor:
        """Sums (batch, heads, m * r, width) of the features with weights (batch, heads, m * r, tokens)."""

    def pull(self, gradients: Tensor, vectors: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """As for Features."""
        return self.copies.by_copy((gradients * along).sum(1)), self.mix(gradients)


@dataclass(frozen=True)
class PathFeatures(LinearFeatures):
    """Features `start + alpha * step`, where `t W` is the step.

    Attributes:
        alphas: (m,).
        copies: Their layout.
    """

    alphas: Tensor
    copies: CopyLayout

    def times(self, number: int) -> Self:
        """As for Features."""
        return replace(self, alphas=self.alphas.repeat(number), copies=self.copies.times(number))

    @property
    def of_rows(self) -> Tensor:
        """Each row's alpha, (m * r, 1)."""
        rows = self.copies.rows
        return self.alphas.repeat_interleave(rows, output_size=self.copies.number * rows)[:, None]


@dataclass(frozen=True)
class InterpolatedFeatures(PathFeatures):
    """The features themselves.

    Attributes:
        start: (batch, heads, tokens, width), or what broadcasts to it; None: zeros.
        step: (batch, heads, tokens, width).
    """

    start: Tensor | None
    step: Tensor

    def products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """As for Features."""
        along = vectors @ self.step.mT
        whole = self.of_rows * along
        return whole if self.start is None else whole + vectors @ self.start.mT, along

    def mix(self, weights: Tensor) -> Tensor:
        """As for LinearFeatures."""
        mixed = (self.of_rows * weights) @ self.step
        return mixed if self.start is None else mixed + weights @ self.start

    def written(self) -> tuple[Tensor, Tensor]:
        """The features and `t W`, (m * batch, heads, tokens, width)."""
        features = self.alphas.view(-1, 1, 1, 1, 1) * self.step
        features = features if self.start is None else self.start + features
        return features.flatten(0, 1), self.step.repeat(len(self.alphas), 1, 1, 1)


@dataclass(frozen=True)
class UnprojectedFeatures(PathFeatures):
    """The tokens before the projection: for few vectors, which are projected back instead.

    Attributes:
        start: (batch, tokens, channels), or None: zeros.
        step: (batch, tokens, channels).
        weight: (heads, width, channels), the projection.
    """

    start: Tensor | None
    step: Tensor
    weight: Tensor

    def products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """As for Features."""
        back = _projected_back(vectors, self.weight).flatten(1, 2)
        along = (back @ self.step.mT).view(*vectors.shape[:3], -1)
        whole = self.of_rows * along
        return whole if self.start is None else whole + (back @ self.start.mT).view_as(whole), along

    def mix(self, weights: Tensor) -> Tensor:
        """As for LinearFeatures."""
        mixed = (self.of_rows * weights).flatten(1, 2) @ self.step
        mixed = mixed if self.start is None else mixed + weights.flatten(1, 2) @ self.start
        return _projected(mixed.view(*weights.shape[:3], -1), self.weight)


@dataclass(frozen=True)
class NoisyFeatures(LinearFeatures):
    """Features `step + deviation * noise W` of noisy tokens, where `t W` is the same.

    Attributes:
        step: (batch, heads, tokens, width), the features without noise.
        weight: (heads, width, channels), the projection.
        noise: (m, tokens, channels), the same for the whole batch.
        deviation: The noise's standard deviation, a number or (batch, 1, 1, 1).
        copies: Their layout.
    """

    step: Tensor
    weight: Tensor
    noise: Tensor
    deviation: float | Tensor
    copies: CopyLayout

    def times(self, number: int) -> Self:
        """As for Features."""
        noise = self.noise if number == 1 else self.noise.repeat(number, 1, 1)
        return replace(self, noise=noise, copies=self.copies.times(number))

    def products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """As for Features: the vectors are projected back to the tokens' channels, not the noise forward."""
        noise = self.copies.from_copies(self.copies.as_copies(_projected_back(vectors, self.weight)) @ self.noise.mT)
        whole = vectors @ self.step.mT + self.deviation * noise
        return whole, whole

    def mix(self, weights: Tensor) -> Tensor:
        """As for LinearFeatures."""
        noise = self.copies.from_copies(self.copies.as_copies(weights) @ self.noise)
        return weights @ self.step + self.deviation * _projected(noise, self.weight)

    def written(self) -> tuple[Tensor, Tensor]:
        """The features and `t W`, (m * batch, heads, tokens, width)."""
        noise = torch.einsum("mnd,hwd->mhnw", self.noise, self.weight)
        features = (self.step + self.deviation * noise[:, None]).flatten(0, 1)
        return features, features


class MaterialisedKeys(Features):
    """Keys that are normalised or rotated: written down, with the gradient taken through it."""

    def __init__(
        self,
        keys: InterpolatedFeatures | NoisyFeatures,
        bias: Tensor | None,
        turn: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
    ) -> None:
        self._copies = keys.copies
        before, self._along = keys.written()
        self._before = (before if bias is None else before + bias).detach().requires_grad_()
        with torch.enable_grad():
            self._keys = turn(self._before.to(dtype)).to(before.dtype)

    def times(self, number: int) -> Self:
        """As for Features; only once, as the gradient is taken through them."""
        assert number == 1  # noqa: S101 # chunks of such keys take one target at once
        return self

    def products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """As for Features, but for the second result, which `pull` does not need."""
        whole = self._copies.as_rows(self._copies.as_samples(vectors) @ self._keys.detach().mT)
        return whole, whole

    def pull(self, gradients: Tensor, vectors: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """As for Features."""
        gradients = self._copies.as_samples(gradients)
        of_keys = gradients.mT @ self._copies.as_samples(vectors)
        (before,) = torch.autograd.grad(self._keys, self._before, of_keys, retain_graph=True)
        share = (before * self._along).sum((1, 3)).unflatten(0, (self._copies.number, -1))
        return share, self._copies.as_rows(gradients @ self._keys.detach())


def _projected(sums: Tensor, weight: Tensor) -> Tensor:
    """From channels (batch, heads, rows, channels) to a width, without a copy of the weight for each sample."""
    return torch.einsum("bhrc,hwc->bhrw", sums, weight)


def _projected_back(vectors: Tensor, weight: Tensor) -> Tensor:
    """From a width (batch, heads, rows, width) back to channels."""
    return torch.einsum("bhrw,hwc->bhrc", vectors, weight)


@contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """Without gradients, and in the types given even under autocast."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield
