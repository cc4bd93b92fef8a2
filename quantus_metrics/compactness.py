"""Compactness: the fraction of pixels that a map leaves nearly blank."""

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

from quantus.helpers.enums import DataType, EvaluationCategory
from torch import Tensor

from ._checks import checked, unit_fraction
from ._maps import is_constant
from ._metric import Options, TensorMetric
from ._predictions import Predictions
from ._scores import Scores


def compactness(
    model: Any = None,
    x: Tensor | None = None,
    y: Tensor | Sequence[int] | None = None,
    a: Tensor | None = None,
    *,
    threshold: float = 0.05,
) -> Tensor:
    """The fraction of pixels with `|m| <= threshold max m`, of the raw map.

    Source: CDAM, section 3.4. Higher is better; from 0 to 1. A map of zeros scores 1, one of negative values only 0.

    Args:
        model: Not used, like `x` and `y`; the signature is that of the other scores.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the classes.
        a: (batch, [1 or channels,] height, width), channels are summed; or (batch, tokens).
        threshold: The share of the maximum up to which a pixel counts as blank, from 0 to 1.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if `a` is not a tensor.
        ValueError: if shapes do not match, or something is not finite.

    Example:
        >>> import torch
        >>> from quantus_metrics import compactness
        >>> compactness(a=torch.tensor([[[1.0, 0.04], [-0.5, 0.0]]]))
        tensor([0.5000])
    """
    if not isinstance(a, Tensor):
        raise TypeError(f"Expected `a`, the maps, to be a tensor, got {type(a)}.")
    x = a[:, None] if x is None and a.dim() == 3 else a if x is None else x
    _, _, maps = checked(x, [0] * len(x) if y is None else y, a, texts=True)
    return _scores(maps, unit_fraction("threshold", threshold)).values


class Compactness(TensorMetric):
    """Compactness: the fraction of pixels with `|m| <= threshold max m`, of the raw map.

    Source: CDAM, section 3.4. Higher is better; from 0 to 1. Undefined: constant maps, for which the formula is kept.

    Args:
        threshold: The share of the maximum up to which a pixel counts as blank, from 0 to 1.
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.Compactness().threshold
        0.05
    """

    name = "Compactness"
    data_applicability: ClassVar = {DataType.IMAGE, DataType.TEXT}
    runs_model: ClassVar[bool] = False
    evaluation_category = EvaluationCategory.COMPLEXITY

    def __init__(self, threshold: float = 0.05, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.threshold = unit_fraction("threshold", threshold)

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `compactness`."""
        return _scores(a, self.threshold)


def _scores(maps: Tensor, threshold: float) -> Scores:
    flat = maps.flatten(1)
    blank = flat.abs() <= threshold * flat.amax(1, keepdim=True)
    return Scores(blank.to(flat.dtype).mean(1), is_constant(maps))
