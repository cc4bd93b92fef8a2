"""A batch of samples: every method explains it, every metric scores it; failures are isolated per cell."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapters.models import logits_of, placement_of, unchanged

from ._display import flat, shown_map
from ._methods import Explain
from ._metrics import Metric
from ._models import PlainLogits
from ._samples import Sample, stacked
from ._seeding import seeded_for

Array = npt.NDArray[Any]


@dataclass
class Batch:
    """The results of a batch; rows are tuples in the order of the table's columns."""

    scores: list[tuple[Any, ...]] = field(default_factory=list)
    explanations: list[tuple[Any, ...]] = field(default_factory=list)
    curves: list[tuple[Any, ...]] = field(default_factory=list)
    skipped: list[tuple[Any, ...]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Maps:
    """One method's maps of some samples.

    Attributes:
        values: (samples, 1, ...) of the samples' axes, NaN where it is missing.
        errors: Why a map is missing, or None.
        seconds: Time for one of them.
    """

    values: Array
    errors: list[str | None]
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """How batches are evaluated.

    Attributes:
        model: In evaluation mode, on its device.
        explains: The methods' functions of model, inputs and targets.
        metrics: The scores.
        by_label: Whether to explain the label instead of the predicted class.
        seed: The seed of all random numbers.
        forward_batch: Batch size for perturbed images.
        gallery: Samples with an index below it are kept for the report.
    """

    model: nn.Module
    explains: Mapping[str, Explain]
    metrics: Mapping[str, Metric]
    by_label: bool
    seed: int
    forward_batch: int
    gallery: int

    def __call__(self, samples: Sequence[Sample], tell: Callable[[str], None] = lambda _: None) -> Batch:
        """All rows of some samples.

        Args:
            samples: The samples, all with a label if these are explained.
            tell: Called with the name of each step, for progress bars.
        """
        batch = Batch()
        if not samples:
            return batch
        x = placement_of(self.model).moved(stacked(samples))
        y, other = self.classes(samples, x)
        shown = [i for i, sample in enumerate(samples) if sample.index < self.gallery]
        pictures = [_picture(sample, int(y[i]), int(other[i])) for i, sample in enumerate(samples) if i in shown]
        for name, explain in self.explains.items():
            tell(name)
            maps = self.explained(explain, samples, x, y)
            against = shown if not any(m.compares_classes for m in self.metrics.values()) else list(range(len(samples)))
            others = self.explained(explain, [samples[i] for i in against], x[against], other[against])
            _add_maps(pictures, name, shown, maps, others, against)
            batch.explanations += [
                (s.index, s.name, int(cls), name, error, maps.seconds)
                for s, cls, error in zip(samples, y, maps.errors, strict=True)
            ]
            self._score(batch, name, samples, x, y, maps, others, tell)
        batch.pictures = pictures
        return batch

    def classes(self, samples: Sequence[Sample], x: Tensor) -> tuple[Tensor, Tensor]:
        """The class that is explained of each sample, and the likeliest other one.

        Of several labels the likeliest is explained; the other one is none of them.
        """
        with torch.no_grad():
            logits = logits_of(self.model(x))
        if not self.by_label:
            y = logits.argmax(1)
            return y, logits.scatter(1, y[:, None], float("-inf")).argmax(1)
        bad = sorted({label for s in samples for label in s.labels if not 0 <= label < logits.shape[1]})
        if bad:
            raise ValueError(f"Expected labels below {logits.shape[1]}, the number of the model's classes; got {bad}.")
        mine = torch.zeros_like(logits, dtype=torch.bool)
        for row, sample in zip(mine, samples, strict=True):
            row[list(sample.labels)] = True
        y = logits.masked_fill(~mine, float("-inf")).argmax(1)
        mine = mine & ~mine.all(1, keepdim=True)  # where a sample has all classes, any other than the explained one
        return y, logits.masked_fill(mine, float("-inf")).scatter(1, y[:, None], float("-inf")).argmax(1)

    def explained(self, explain: Explain, samples: Sequence[Sample], x: Tensor, y: Tensor) -> Maps:
        """One method's maps; seeded alike for all methods and classes."""

        def compute(rows: slice) -> list[Array]:
            with seeded_for(self.seed, "explanation", samples[rows][0].index):
                return list(explain(self.model, x[rows], y[rows]))

        start = time.perf_counter()
        parts, errors = isolated(compute, len(samples))
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        for i, part in enumerate(parts):
            if part is not None and not np.isfinite(part).all():
                errors[i] = "ValueError: the map holds NaN or infinity"
        channels = next((len(part) for part in parts if part is not None), 1)
        nothing = np.full((channels, *x.shape[2:]), np.nan, np.float32)
        values = [nothing if error else part for part, error in zip(parts, errors, strict=True)]
        return Maps(np.stack(values) if values else nothing[None][:0], errors, seconds)

    def _score(
        self,
        batch: Batch,
        method: str,
        samples: Sequence[Sample],
        x: Tensor,
        y: Tensor,
        maps: Maps,
        others: Maps,
        tell: Callable[[str], None],
    ) -> None:
        for name, metric in self.metrics.items():
            tell(f"{method} {name}")
            missing = list(maps.errors)
            if metric.compares_classes:
                missing = [one or two for one, two in zip(missing, others.errors, strict=True)]
            rows = [i for i, error in enumerate(missing) if error is None]
            call = _Call(self, metric, name, self.explains[method], x, y, maps.values, others.values, samples)
            start = time.perf_counter()
            values, errors = isolated(lambda part, rows=rows, call=call: call(rows[part]), len(rows))  # type: ignore[misc]
            seconds = (time.perf_counter() - start) / max(1, len(rows))
            found = {i: (value, error) for i, value, error in zip(rows, values, errors, strict=True)}
            for i, sample in enumerate(samples):
                value, error = found.get(i, (None, missing[i]))
                score = float("nan") if value is None else value[0]
                if error is None and not np.isfinite(score):
                    score, error = float("nan"), f"the score is {score}"
                batch.scores.append(
                    (sample.index, int(y[i]), method, name, score, error, seconds if i in found else 0.0)
                )
                if error is None and value is not None:
                    batch.curves += [(sample.index, method, name, *curve) for curve in value[1]]


@dataclass(frozen=True)
class _Call:
    """A metric's call for some rows of a batch: for each its score and its curves (name, axis, x, y)."""

    of: Evaluation
    metric: Metric
    name: str
    explain: Explain
    x: Tensor
    y: Tensor
    maps: Array
    others: Array
    samples: Sequence[Sample]

    def __call__(self, rows: list[int]) -> list[tuple[float, list[tuple[Any, ...]]]]:
        score = self.metric.score
        model = self.of.model
        further: dict[str, Any] = {}
        if self.metric.compares_classes:
            further["wrong_a_batch"] = self.others[rows].copy()
        if not self.metric.ours:
            model = plain(model)
            further |= {"explain_func": self.explain, "explain_func_kwargs": {}, "s_batch": self._masks(rows)}
        with unchanged(self.of.model), seeded_for(self.of.seed, self.name, self.samples[rows[0]].index):
            found = score(
                model=model,
                x_batch=self.x[rows].to(torch.promote_types(self.x.dtype, torch.float32)).cpu().numpy(),
                y_batch=self.y[rows].cpu().numpy(),
                a_batch=self.maps[rows].copy(),
                **({"s_batch": None} | further),
                channel_first=True,
                device=str(placement_of(model).device or "cpu"),
                batch_size=self.of.forward_batch,
            )
        values = np.asarray(found, dtype=float)
        if values.shape != (len(rows),):
            raise ValueError(
                f"Expected {len(rows)} scores from {self.metric.title}, one for each sample, got shape {values.shape}."
            )
        label, points = getattr(score, "axis", ("", ()))
        curves = getattr(score, "curves", {})
        return [
            (float(value), [(name, label, list(points), curve[i].tolist()) for name, curve in curves.items()])
            for i, value in enumerate(values)
        ]

    def _masks(self, rows: list[int]) -> Array | None:
        """Where the samples' objects are, whichever class is explained."""
        masks = [mask for i in rows if (mask := self.samples[i].mask) is not None]
        if len(masks) == len(rows):
            return torch.stack(masks)[:, None].numpy()
        if self.metric.localises:
            raise ValueError(
                f"{self.metric.title} needs to know where the object is: return (image, label, mask) or a dictionary "
                "of image, label and mask or box; in a table, the columns mask or box."
            )
        return None


def isolated(compute: Callable[[slice], list[Any]], count: int) -> tuple[list[Any], list[str | None]]:
    """Results of all rows at once; if that fails, of each row alone, so that a row that fails affects no other.

    Returns:
        For each row its result or None, and its error or None.
    """
    if count == 0:
        return [], []
    try:
        found = compute(slice(0, count))
        if len(found) != count:
            raise ValueError(f"Expected {count} results, one for each sample, got {len(found)}.")
        return found, [None] * count
    except Exception as error:
        if count == 1:
            return [None], [_said(error)]
    results: list[Any] = []
    errors: list[str | None] = []
    for i in range(count):
        result, error_ = isolated(lambda _, i=i: compute(slice(i, i + 1)), 1)  # type: ignore[misc]
        results += result
        errors += error_
    return results, errors


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def plain(model: nn.Module) -> nn.Module:
    """A model that Quantus can run: float32 in and out."""
    return model if placement_of(model).dtype in (None, torch.float32) else PlainLogits(model).eval()


def _picture(sample: Sample, target: int, other: int) -> dict[str, Any]:
    return {
        "index": sample.index,
        "name": sample.name,
        "image": flat(sample.image.float().cpu().numpy()),
        "classes": list(dict.fromkeys([target, other])),
        "maps": {},
    }


def _add_maps(
    pictures: list[dict[str, Any]], method: str, shown: list[int], maps: Maps, others: Maps, against: list[int]
) -> None:
    for picture, i in zip(pictures, shown, strict=True):
        j = against.index(i)
        for cls, given, row in zip(picture["classes"], (maps, others), (i, j), strict=False):
            if given.errors[row] is None:
                picture["maps"][method, cls] = shown_map(given.values[row, 0])
