"""The formulas once more, for models whose last attention is known."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapters import AttentionTail

from ._class_token_reading import ClassTokenReading
from ._differentiated_reading import DifferentiatedReading
from ._targets import Score
from ._token_copies import NoiseCopies, PathCopies

R = TypeVar("R", ClassTokenReading, DifferentiatedReading)


def attention_relevance(
    tail: AttentionTail, scores: Sequence[Score], copies: PathCopies | NoiseCopies
) -> tuple[Tensor, Tensor]:
    """Weighted sums of relevance over all copies, for each score.

    Args:
        tail: The model.
        scores: The targets' score functions.
        copies: The copies of the tokens.

    Returns:
        Scores (targets, batch, tokens) in float32 or wider, and whether any patch received a gradient at all,
        (targets, batch).
    """
    parts = alive = None
    for reading in _readings(tail, copies):
        left = range(len(scores) - 1, -1, -1)
        answers = [reading.relevance(score, again=i > 0) for i, score in zip(left, scores, strict=True)]
        part, reached = (torch.stack(column) for column in zip(*answers, strict=True))
        parts = part if parts is None else parts + part
        alive = reached if alive is None else alive | reached
        del reading, answers  # before the next chunk needs the memory
    if parts is None or alive is None:
        raise ValueError("Expected at least one copy.")
    return parts, alive


def attention_scores(tail: AttentionTail, scores: Sequence[Score], copies: PathCopies | NoiseCopies) -> Tensor:
    """The scores themselves, (targets, copies, batch)."""
    with torch.no_grad():
        parts = [torch.stack([score(one.readout) for score in scores]) for one in _readings(tail, copies)]
        return torch.cat(parts, 1).view(len(scores), len(copies), -1)


def _readings(
    tail: AttentionTail, copies: PathCopies | NoiseCopies
) -> Iterator[ClassTokenReading] | Iterator[DifferentiatedReading]:
    """The model's outputs for the copies, chunk after chunk."""
    if tail.algebra and not tail.reads_all:
        return _in_chunks(ClassTokenReading, tail, copies.for_class_token(tail), len(copies))
    return _in_chunks(DifferentiatedReading, tail, copies.for_differentiation(tail), len(copies))


def _in_chunks(
    kind: Callable[[AttentionTail, Iterator[Any]], R], tail: AttentionTail, chunks: Iterator[Any], total: int
) -> Iterator[R]:
    done = 0
    while done < total:
        reading = kind(tail, chunks)  # asks for its chunk when the tail knows its tokens
        done += reading.copies
        yield reading
        del reading
