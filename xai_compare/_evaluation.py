"""A batch of samples: every method explains it, every metric scores it; failures are isolated per cell."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapters.models import placement_of, unchanged

from ._display import flat, shown_map, small_map
from ._isolation import free_memory, isolated, out_of_memory, said
from ._methods import Explain
from ._metrics import Metric, one_each
from ._questioned import Inside, Question, for_quantus
from ._samples import Sample, stacked
from ._seeding import seeded_for

Array = npt.NDArray[Any]


@dataclass
class Batch:
    """The results of a batch; rows are tuples in the order of the table's columns."""

    scores: list[tuple[Any, ...]] = field(default_factory=list)
    explanations: list[tuple[Any, ...]] = field(default_factory=list)
    curves: list[tuple[Any, ...]] = field(default_factory=list)
    small_maps: list[tuple[Any, ...]] = field(default_factory=list)
    maps: list[tuple[Any, ...]] = field(default_factory=list)
    skipped: list[tuple[Any, ...]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)


class Step(NamedTuple):
    """How far the work on a batch is.

    Attributes:
        name: Of what begins, for progress bars.
        batch: All results so far.
        cells: The cells that these are, by method the metrics.
    """

    name: str
    batch: Batch
    cells: dict[str, list[str]]


def last(steps: Iterator[Step]) -> Batch:
    """The results of a whole batch."""
    *_, step = steps
    return step.batch


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
        question: What is asked of each sample.
        outputs: How many outputs the model has.
        seed: The seed of all random numbers.
        forward_batch: Batch size for perturbed images.
        gallery: Samples with an index below it are kept for the report.
        save_maps: Are whole maps kept?
    """

    model: nn.Module
    explains: Mapping[str, Inside]
    metrics: Mapping[str, Metric]
    question: Question
    outputs: int
    seed: int
    forward_batch: int
    gallery: int
    save_maps: bool = False

    def __call__(self, samples: Sequence[Sample], cells: Mapping[str, Sequence[str]]) -> Iterator[Step]:
        """Work on some samples, step by step.

        Args:
            samples: The samples, all with a label if these are explained.
            cells: The metrics that are wanted of each method.
        """
        batch, done = Batch(), dict[str, list[str]]()
        if not samples:
            yield Step("", batch, done)
            return
        x = placement_of(self.model).moved(stacked(samples))
        y, other = self.classes(samples, x)
        shown = [i for i, sample in enumerate(samples) if sample.index < self.gallery]
        batch.pictures = [
            _picture(sample, self.question.shown(y[i]), self.question.shown(other[i]))
            for i, sample in enumerate(samples)
            if i in shown
        ]
        for name, wanted in cells.items():
            yield Step(name, batch, done)
            explain, metrics = self.explains[name], {metric: self.metrics[metric] for metric in wanted}
            maps = self.explained(explain, samples, x, y)
            against = shown if not any(m.compares_classes for m in metrics.values()) else list(range(len(samples)))
            others = self._of_others(explain, [samples[i] for i in against], x[against], other[against], maps)
            _add_maps(batch.pictures, name, shown, maps, others, against)
            batch.explanations += [
                (s.index, s.name, self.question.shown(cls), name, error, maps.seconds)
                for s, cls, error in zip(samples, y, maps.errors, strict=True)
            ]
            made = [(s, one) for s, one, error in zip(samples, maps.values, maps.errors, strict=True) if error is None]
            batch.small_maps += [_row(sample, name, small_map(one)) for sample, one in made]
            if self.save_maps:
                batch.maps += [_row(sample, name, one[0] if len(one) == 1 else one) for sample, one in made]
            done[name] = []
            for metric in metrics:
                yield Step(f"{name} {metric}", batch, done)
                self._score(batch, name, metric, samples, x, y, maps, others)
                done[name].append(metric)
        yield Step("", batch, done)

    def asked(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """A batch of one sample, and its class."""
        x = placement_of(self.model).moved(sample.image[None])
        return x, self.classes([sample], x)[0]

    def attribution(self, name: str, x: Tensor, y: Tensor) -> tuple[Any, Tensor, Any, Mapping[str, Any]]:
        """A method as an attribution with Captum's interface, with inputs, target and options of its `attribute`."""
        return self.explains[name].attribution(self.model, x, self.question.targets(y))

    def classes(self, samples: Sequence[Sample], x: Tensor) -> tuple[Tensor, Tensor]:
        """The class that is explained of each sample, and the likeliest other one."""
        found: tuple[Tensor, Tensor] = self.question.classes(
            self.model, x, [sample.labels for sample in samples], [sample.index for sample in samples]
        )
        return found

    def _of_others(self, explain: Explain, samples: Sequence[Sample], x: Tensor, other: Tensor, maps: Maps) -> Maps:
        """Maps of other classes, which functions do not have."""
        if not self.question.functions:
            return self.explained(explain, samples, x, other)
        nothing = np.full((len(samples), *maps.values.shape[1:]), np.nan, np.float32)
        said = "ValueError: there is no other class to compare with, as the targets are functions"
        return Maps(nothing, [said] * len(samples), 0.0)

    def explained(self, explain: Explain, samples: Sequence[Sample], x: Tensor, y: Tensor) -> Maps:
        """One method's maps; seeded alike for all methods and classes."""

        def compute(rows: slice) -> list[Array]:
            with seeded_for(self.seed, "explanation", samples[rows][0].index):
                return list(explain(self.model, x[rows], self.question.targets(y[rows])))

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
        name: str,
        samples: Sequence[Sample],
        x: Tensor,
        y: Tensor,
        maps: Maps,
        others: Maps,
    ) -> None:
        metric, missing = self.metrics[name], list(maps.errors)
        if metric.compares_classes:
            missing = [one or two for one, two in zip(missing, others.errors, strict=True)]
        rows = [i for i, error in enumerate(missing) if error is None]
        call = _Call(self, metric, name, self.explains[method], x, y, maps.values, others.values, samples)
        start = time.perf_counter()
        values, errors = call.isolated(rows)
        seconds = (time.perf_counter() - start) / max(1, len(rows))
        found = {i: (value, error) for i, value, error in zip(rows, values, errors, strict=True)}
        for i, sample in enumerate(samples):
            value, error = found.get(i, (None, missing[i]))
            score = float("nan") if value is None else value[0]
            if error is None and not np.isfinite(score):
                undefined = metric.compares_classes and self.outputs == 1
                said = "undefined: the model has one output, so no other class"
                score, error = float("nan"), said if undefined else f"the score is {score}"
            target, own = self.question.shown(y[i]), seconds if i in found else 0.0
            batch.scores.append((sample.index, target, method, name, score, error, own))
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

    def isolated(self, rows: list[int]) -> tuple[list[Any], list[str | None]]:
        """The results of some rows and their errors; what fails affects no other row, nor the random numbers of others.

        A metric draws its random numbers for a batch. So it is always called for as many rows as the batch has: those
        without a map are taken by the first one that has one, and a row that must be scored alone takes all.
        """
        if not rows:
            return [], []
        filled = [i if i in rows else rows[0] for i in range(len(self.samples))]
        try:
            found = self(filled)
            return [found[i] for i in rows], [None] * len(rows)
        except Exception as error:
            if len(rows) == 1:
                return [None], [said(error)]
        parts = [self._alone(i) for i in rows]
        return [result for result, _ in parts], [error for _, error in parts]

    def _alone(self, row: int) -> tuple[Any, str | None]:
        try:
            return self([row] * len(self.samples))[row], None
        except Exception as error:
            return None, said(error)

    def __call__(self, rows: list[int]) -> list[tuple[float, list[tuple[Any, ...]]]]:
        """The results, with smaller batches where memory does not suffice."""
        size = self.of.forward_batch
        while True:
            try:
                return self._scored(rows, size)
            except RuntimeError as error:
                if not out_of_memory(error) or size == 1:
                    raise
                size = max(1, size // 2)
                free_memory()

    def _scored(self, rows: list[int], forward_batch: int) -> list[tuple[float, list[tuple[Any, ...]]]]:
        score = self.metric.score
        model = self.of.model
        further: dict[str, Any] = {}
        if self.metric.compares_classes:
            further["wrong_a_batch"] = self.others[rows].copy()
        if not self.metric.ours:
            further |= for_quantus(model, score, self.of.question, self.of.outputs)
            model = further.pop("model")
            further |= {"explain_func": self.explain, "explain_func_kwargs": {}, "s_batch": self._masks(rows)}
        with unchanged(self.of.model), seeded_for(self.of.seed, self.name, self.samples[0].index):
            found = score(
                model=model,
                x_batch=self.x[rows].to(torch.promote_types(self.x.dtype, torch.float32)).cpu().numpy(),
                y_batch=self.y[rows].cpu().numpy() if not self.metric.ours else self._targets(rows),
                a_batch=self.maps[rows].copy(),
                **({"s_batch": None} | further),
                channel_first=True,
                device=str(placement_of(model).device or "cpu"),
                batch_size=forward_batch,
            )
        values = one_each(found, len(rows), self.metric.title)
        label, points = getattr(score, "axis", ("", ()))
        curves = getattr(score, "curves", {})
        return [
            (float(value), [(name, label, list(points), curve[i].tolist()) for name, curve in curves.items()])
            for i, value in enumerate(values)
        ]

    def _targets(self, rows: list[int]) -> Any:
        targets = self.of.question.targets(self.y[rows])
        return targets.cpu().numpy() if isinstance(targets, Tensor) else targets

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


def _row(sample: Sample, method: str, heat: Array) -> tuple[Any, ...]:
    return sample.index, method, list(heat.shape), heat.astype(np.float32).ravel()


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
