"""The result of a score for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The result of one score for a batch.

    Attributes:
        values: (batch,) scores.
        undefined: (batch,), samples whose score is a convention, as the definition divides zero by zero, or not finite.
        curves: By name the curves that the scores summarise, each (batch, points).
        axis: The label of the curves' horizontal axis, and the values of the points.
    """

    values: Tensor
    undefined: Tensor
    curves: dict[str, Tensor] = field(default_factory=dict)
    axis: tuple[str, Sequence[float]] = ("", ())
