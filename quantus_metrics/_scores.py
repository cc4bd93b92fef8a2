"""The scores of a batch, and what is to be said about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The result of one score for a batch.

    Attributes:
        values: (batch,) scores.
        undefined: (batch,), for which samples the definition divides zero by zero, so that a convention
            holds, or the model's answer is not finite.
        curves: By name what the scores summarise, each (batch, points).
        axis: What is on the curves' horizontal axis: its label, and the values of the points.
    """

    values: Tensor
    undefined: Tensor
    curves: dict[str, Tensor] = field(default_factory=dict)
    axis: tuple[str, Sequence[float]] = ("", ())
