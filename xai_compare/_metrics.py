"""The scores of explanations that can be compared, by name."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import quantus
from quantus.helpers.enums import EvaluationCategory
from quantus.metrics.base import Metric as Score

import quantus_metrics
from quantus_metrics import BoxSensitivity, ClassDiscrimination
from quantus_metrics._probabilities import Activation

from ._fingerprint import fingerprint
from ._names import by_slug, from_entry_points, select, slug

GROUP = "xai_compare.metrics"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A metric that is ready to be called.

    Attributes:
        score: The Quantus metric.
        title: Its name in Quantus.
        direction: "higher", "lower" or "": which scores are better.
        ours: Whether it is one of this project, which normalise nothing and reuse predictions across explanations.
        compares_classes: Whether it compares the maps of two classes.
        given: Whether the user made the object.
        localises: Whether it compares a map with the mask of an object.
    """

    score: Score[Any]
    title: str
    direction: str
    ours: bool
    compares_classes: bool
    localises: bool
    given: bool = False

    @property
    def source(self) -> Any:
        """Its class and arguments, compared when a run is resumed."""
        return fingerprint(self.score)


def metrics() -> dict[str, type[Score[Any]]]:
    """All metrics registered with Quantus, including this project's, and those of entry points."""
    known = {slug(name): cls for group in quantus.AVAILABLE_METRICS.values() for name, cls in group.items()}
    return known | from_entry_points(GROUP, known)


def our_metrics() -> list[str]:
    """The names of this project's scores."""
    return [name for name, cls in metrics().items() if _is_ours(cls)]


def _of_any_model() -> list[str]:
    """The same without those that need tokens on a grid."""
    known = metrics()
    return [name for name in our_metrics() if not getattr(known[name], "reads_tokens", False)]


def metrics_named(
    wanted: Any, options: Mapping[str, Mapping[str, Any]], activation: Activation = "softmax"
) -> dict[str, Metric]:
    """The requested metrics, constructed with the user's options.

    Args:
        wanted: Names, where "all" stands for this project's metrics of any model; or a mapping from other names to
            Quantus metrics.
        options: Arguments of the classes, by name.
        activation: What makes probabilities of the outputs, unless the options say it.

    Raises:
        TypeError: if an argument is unknown, or a value is not a metric.
        ValueError: if a name is unknown, two are the same once normalised, an argument is wrong, or options or an
            activation are given for a metric that is ready.
    """
    if isinstance(wanted, Mapping):
        for name, value in wanted.items():
            if not isinstance(value, Score):
                raise TypeError(f"Expected metric {name!r} to be an instance of quantus.Metric, got {type(value)}.")
        ready = {short: wanted[name] for short, name in by_slug(wanted).items()}
        for name, score in ready.items():
            _check_ready(name, score, options.get(name), activation)
        return {name: replace(_described(score), given=True) for name, score in ready.items()}
    names = [n for name in wanted for n in (_of_any_model() if slug(name) == "all" else [name])]
    classes = select("metric", names, metrics())
    given = {name: _defaults(cls, activation) | dict(options.get(name, {})) for name, cls in classes.items()}
    made = {name: _made(name, cls, given[name]) for name, cls in classes.items() if not _tells(cls)}
    for name, cls in classes.items():
        if _tells(cls):
            made[name] = _made(name, cls, _of_another(given[name], made))
    return {name: _described(made[name]) for name in classes}


def _defaults(cls: type[Score[Any]], activation: Activation) -> dict[str, Any]:
    return {"activation": activation} if _is_ours(cls) else {}


def _check_ready(name: str, score: Score[Any], options: Mapping[str, Any] | None, activation: Activation) -> None:
    """A metric that is made already takes no arguments any more."""
    if options:
        raise ValueError(
            f"Options are given for metric {name!r}, {', '.join(options)}, which is an object and has its own: pass "
            f"them to {type(score).__name__}(...), or the metric by its name."
        )
    if activation not in ("softmax", own := getattr(score, "activation", activation)):
        raise ValueError(
            f"Metric {name!r} is an object whose `activation` is {own!r}, but the comparison's is {activation!r}: pass "
            f"it to {type(score).__name__}(activation=...), too."
        )


def _of_another(options: dict[str, Any], made: Mapping[str, Score[Any]]) -> dict[str, Any]:
    """Options of a metric that contains another one: that of this run, so that both share perturbed predictions."""
    if "metric" not in options:
        box = next((score for score in made.values() if type(score) is BoxSensitivity), None)
        options = options if box is None else {key: value for key, value in options.items() if key != "activation"}
        return options if box is None else options | {"metric": box}
    options.pop("activation", None)  # that of the other metric
    given = options["metric"]
    return options | {"metric": select("metric", [given], made)[slug(given)]} if isinstance(given, str) else options


def _tells(cls: type) -> bool:
    return issubclass(cls, ClassDiscrimination)


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(quantus_metrics.__name__)


def direction_of(score: Any) -> str:
    """Which scores of a metric, or of its class, are better: "higher", "lower" or "", neither."""
    direction = getattr(getattr(score, "score_direction", None), "value", "")
    return str(direction) if direction in ("higher", "lower") else ""


def _described(score: Score[Any]) -> Metric:
    return Metric(
        score,
        title=score.name.strip(),
        direction=direction_of(score),
        ours=_is_ours(type(score)),
        compares_classes=_tells(type(score)),
        localises=score.evaluation_category == EvaluationCategory.LOCALISATION,
    )


def _made(name: str, cls: type[Score[Any]], options: Mapping[str, Any]) -> Score[Any]:
    parameters = inspect.signature(cls.__init__).parameters
    defaults: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
    if not _is_ours(cls):
        defaults |= {"return_aggregate": False, "normalise_func": normalise_each}
        defaults |= {} if "return_last_correlation" in options else {"return_average_correlation": True}
        defaults = {key: value for key, value in defaults.items() if key in parameters}
    try:
        return cls(**(defaults | dict(options)))
    except (TypeError, ValueError) as error:
        raise type(error)(f"Metric {name!r} cannot be made: {error}") from error


def normalise_each(a: Array, **_: Any) -> Array:
    """Each map divided by its own largest absolute value.

    Quantus' own function normalises by the whole batch, so that a sample's score would depend on the rest of its batch.
    """
    largest = np.abs(a).max(axis=tuple(range(1, a.ndim)), keepdims=True)
    normalised: Array = a / np.where(largest > 0, largest, 1)
    return normalised


def one_each(found: Any, count: int, title: str) -> Array:
    """One number for each sample: a curve counts as its mean, as do numbers by layer.

    Raises:
        ValueError: if there is not one number, or curve, for each sample.
    """
    try:
        values = np.asarray(list(found.values()) if isinstance(found, Mapping) else found, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected {count} scores from {title}, one for each sample, got {_short(found)}.") from error
    if isinstance(found, Mapping):  # by layer or step: of each sample, or of all together, which is one only alone
        values = values.swapaxes(0, 1) if values.ndim > 1 else values[None]
    if values.shape[:1] != (count,) or values.size == 0:
        raise ValueError(f"Expected {count} scores from {title}, one for each sample, got shape {values.shape}.")
    means: Array = values.reshape(count, -1).mean(1)
    return means


def _short(found: Any) -> str:
    return f"{type(found).__name__} {str(found)[:80]}"
