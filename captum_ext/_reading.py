"""The model's output for some copies of its tokens, and the relevance of the tokens for it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from adapters import AttentionTail

from ._features import Copies
from ._targets import Score


class Chunk(Protocol):
    """Some copies of the tokens, evaluated at once."""

    @property
    def copies(self) -> Copies:
        """How many, and their layout."""
        ...


C = TypeVar("C", bound=Chunk)


class Reading(ABC, Generic[C]):
    """The model's output for a chunk, and the relevance of the tokens for it.

    Args:
        tail: The model.
        chunks: Asked for the chunk when the tail knows its tokens.
    """

    def __init__(self, tail: AttentionTail, chunks: Iterator[C]) -> None:
        self._tail = tail
        self._chunks = chunks
        self.readout = tail.read(self._attend)

    def _attend(self) -> Tensor:
        self._chunk = next(self._chunks)
        return self._attended(self._chunk)

    @property
    def copies(self) -> int:
        """How many copies the chunk has."""
        return self._chunk.copies.number

    @abstractmethod
    def _attended(self, chunk: C) -> Tensor:
        """The attention's output for the chunk, with its graph."""

    @abstractmethod
    def relevance(self, score: Score, *, again: bool) -> tuple[Tensor, Tensor]:
        """Scores (batch, tokens), summed over the chunk, and whether any patch received a gradient, (batch,).

        Args:
            score: Reads the target's scores.
            again: Will it be asked for another score? Else memory is freed.
        """

    def _gradients(self, score: Score, ends: Sequence[Tensor], *, again: bool) -> tuple[Tensor | None, ...]:
        """Those of the score; None where it does not depend on an end."""
        with torch.enable_grad():
            total = score(self.readout).sum()
        if not total.requires_grad:
            return (None,) * len(ends)
        return torch.autograd.grad(total, ends, retain_graph=again, allow_unused=True)
