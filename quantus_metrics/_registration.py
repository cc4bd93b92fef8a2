"""Registration of the scores with Quantus."""

from typing import cast

import quantus

from ._metric import TensorMetric
from .average_drop import AverageDrop, AverageGain, AverageIncrease
from .box_sensitivity import BoxSensitivity
from .class_discrimination import ClassDiscrimination
from .compactness import Compactness
from .effective_average_drop import EffectiveAverageDrop
from .fidelity import Fidelity
from .insertion import Deletion, Insertion
from .removal_drop import RemovalDrop
from .soft_average_drop import SoftAverageDrop
from .token_faithfulness import TokenFaithfulness

METRICS = (
    SoftAverageDrop,
    RemovalDrop,
    EffectiveAverageDrop,
    BoxSensitivity,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Insertion,
    Deletion,
    Fidelity,
    Compactness,
    ClassDiscrimination,
    TokenFaithfulness,
)


_known = cast(dict[str, dict[str, type[TensorMetric]]], quantus.AVAILABLE_METRICS)


def register() -> None:
    """Add the scores to `quantus.AVAILABLE_METRICS`, and as classes to `quantus`; done on import.

    Raises:
        ValueError: if a name is already taken; nothing is added then.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus_metrics.unregister()
        >>> "Box Sensitivity" in quantus.available_metrics()["Faithfulness"]
        False
        >>> quantus_metrics.register()
        >>> "Box Sensitivity" in quantus.available_metrics()["Faithfulness"]
        True
    """
    for metric in METRICS:
        listed = [known[metric.name] for known in _known.values() if metric.name in known]
        for taken in (*listed, getattr(quantus, metric.__name__, metric)):
            if taken is not metric:
                raise ValueError(
                    f"Quantus has another metric named {metric.name!r} or {metric.__name__}: {taken}. Remove it, or "
                    f"use quantus_metrics.{metric.__name__} directly, which needs no registration."
                )
    for metric in METRICS:
        _known[metric.evaluation_category.value][metric.name] = metric
        setattr(quantus, metric.__name__, metric)


def unregister() -> None:
    """Undo `register`."""
    for metric in METRICS:
        known = _known[metric.evaluation_category.value]
        if known.get(metric.name) is metric:
            del known[metric.name]
        if getattr(quantus, metric.__name__, None) is metric:
            delattr(quantus, metric.__name__)
