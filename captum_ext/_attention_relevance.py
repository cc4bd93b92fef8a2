"""The formulas once more, for models whose last attention is known."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters import AttentionTail

from ._class_token_reading import ClassTokenReading
from ._differentiated_reading import DifferentiatedReading
from ._reading import Reading
from ._targets import Score
from ._token_copies import NoiseCopies, PathCopies


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


def _readings(tail: AttentionTail, copies: PathCopies | NoiseCopies) -> Iterator[Reading[Any]]:
    """The model's outputs for the copies, chunk after chunk."""
    closed = tail.algebra and not tail.reads_all
    kind: type[Reading[Any]] = ClassTokenReading if closed else DifferentiatedReading
    chunks = copies.for_class_token(tail) if closed else copies.for_differentiation(tail)
    done = 0
    while done < len(copies):
        reading = kind(tail, chunks)
        done += reading.copies
        yield reading
        del reading  # before the next chunk needs the memory
