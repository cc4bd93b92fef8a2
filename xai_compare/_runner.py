"""Compare methods by metrics on a model and data: resumable, isolated cell by cell, on one process or many."""

import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from adapters.models import logits_of, output_tensor, placement_of

from ._comparison import Comparison
from ._cost import in_forwards
from ._evaluation import Batch, Evaluation
from ._input_layout import input_layout
from ._methods import Method
from ._metrics import Metric
from ._models import PlainLogits, Subject, moved, weights_hash
from ._names import distinct, fingerprint
from ._run_folder import RunFolder
from ._samples import Sample, Samples
from ._seeding import seeded_for
from ._settings import Settings
from ._workers import Workers, stoppable

_VERSIONS = [
    "xai-discern",
    "torch",
    "captum",
    "grad-cam",
    "quantus",
    "timm",
    "torchvision",
    "transformers",
    "numpy",
    "scipy",
]
_BYTES = {"row": 60, "curve": 900, "picture": 200_000}  # about what is written


@dataclass
class Run:
    """A run that is ready to begin; calling it runs it."""

    settings: Settings
    subject: Subject
    samples: Samples
    methods: dict[str, Method]
    metrics: dict[str, Metric]
    out: Path
    command: str
    workers: Workers

    def __call__(self) -> Comparison:
        settings = self.settings
        self.count = min(len(self.samples), settings.limit or len(self.samples))
        self.by_label = settings.targets == "label" or (settings.targets == "" and settings.data == "digits")
        self.files = RunFolder(self.out)
        self.expected: tuple[torch.Size, int] | None = None
        if self.by_label:
            self.samples.check_labels()
        elif self.samples.advice:
            warnings.warn(self.samples.advice, stacklevel=3)
        model = self._plain(moved(self.subject.model, self.workers.device, settings.dtype))
        self.evaluate = Evaluation(
            model,
            {
                name: method.explain(settings.options.get(name, {}), settings.batch_size)
                for name, method in self.methods.items()
            },
            self.metrics,
            self.by_label,
            settings.seed,
            settings.forward_batch,
            settings.gallery,
        )
        problem: Exception | None = None
        todo: list[int] = []
        if self.workers.is_main:
            try:
                todo = self._begin()
            except Exception as error:
                problem = error
        problem, todo = self.workers.from_main((problem, todo))
        if problem is not None:
            raise problem
        with stoppable():
            self._work(todo)
            self.workers.wait()
        comparison = Comparison(self.out)
        if self.workers.is_main:
            self._end(comparison)
        self.workers.wait()
        return comparison

    def _plain(self, model: nn.Module) -> nn.Module:
        """The model, as one that returns logits as a tensor."""
        first = self._first()
        try:
            with torch.no_grad():
                output = model(placement_of(model).moved(first.image[None]))
        except Exception as error:
            raise ValueError(
                f"The {type(model).__name__} cannot run on sample {first.name}, of shape {tuple(first.image.shape)}: "
                f"{type(error).__name__}: {error} (its first convolution takes {input_layout(model)})"
            ) from error
        chosen = output_tensor(output, self.subject.output, first.image[None])
        self.expected = first.image.shape, logits_of(chosen).shape[1]
        if self.by_label:
            self.samples.check_labels(self.expected[1])
        return model if chosen is output else PlainLogits(model, self.subject.output).eval()

    def _first(self) -> Sample:
        """The first sample that can be read."""
        said = ""
        for index in range(self.count):
            found = self._read(index)
            if isinstance(found, Sample):
                return found
            said = said or f" The first one: {found[1]}: {found[2]}"
        raise ValueError(f"None of the {self.count} samples can be used.{said}")

    def _read(self, index: int) -> Sample | tuple[int, str, str]:
        """A sample, or index, name and error of one that is skipped."""
        try:
            sample = self.samples.read(index)
        except Exception as error:
            return index, self.samples.name(index), f"{type(error).__name__}: {error}"[:500]
        if self.by_label and not sample.labels:
            return index, sample.name, sample.unlabelled
        problem = self._unexpected(sample)
        return (index, sample.name, problem) if problem else sample

    def _unexpected(self, sample: Sample) -> str:
        """Why a sample does not fit the first one or the model, or nothing."""
        shape, classes = self.expected or (sample.image.shape, None)
        if sample.image.shape != shape:
            return f"its shape is {tuple(sample.image.shape)}, the first one's {tuple(shape)}: let the transform resize"
        if not self.by_label or classes is None:
            return ""
        if sample.hot not in (0, classes):
            return f"its label is {sample.hot} zeros and ones, but the model has {classes} classes"
        if any(not 0 <= label < classes for label in sample.labels):
            return f"its label is {', '.join(map(str, sample.labels))}, but the model has {classes} classes"
        return ""

    def _begin(self) -> list[int]:
        """Check all that can be checked before any work; returns the batches that are not finished."""
        versions = _versions()
        facts = self.files.open(self._identity(), self._expected_bytes())
        starts = range(0, self.count, self.settings.batch_size)
        todo = [start for start in starts if start not in self.files.finished()]
        if todo and facts.get("versions", versions) != versions:
            old = [f"{name} {v}" for name, v in facts["versions"].items() if versions.get(name) != v]
            new = [f"{name} {versions.get(name)}" for name, v in facts["versions"].items() if versions.get(name) != v]
            raise ValueError(
                f"{self.out} was begun with {', '.join(old)}; here is {', '.join(new)}, with which numbers may differ. "
                "Use the versions it was begun with, or another folder with --out."
            )
        forwards = facts["forwards"] if "forwards" in facts else self._check_methods()
        begun = {} if todo else facts  # a finished run only reports again
        titles = distinct({name: method.title or name for name, method in self.methods.items()})
        scores = distinct({name: metric.title for name, metric in self.metrics.items()})
        self.facts = facts | {
            "command": self.command or facts.get("command", ""),
            "settings": _plain_settings(self.settings),
            "versions": begun.get("versions", versions),
            "seed": self.settings.seed,
            "samples": self.count,
            "model": self.subject.name,
            "weights": facts["identity"]["weights"],
            "data": self.samples.description,
            "classes": {} if self._misfit() else dict(self.samples.classes.numbers),
            "device": begun.get("device", _device_name(self.workers.device, self.workers.count)),
            "processes": begun.get("processes", self.workers.count),
            "started": facts.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
            "interruptions": facts.get("interruptions", -1) + bool(todo),
            "methods": {name: {"title": titles[name], "source": m.source} for name, m in self.methods.items()},
            "metrics": {name: {"title": scores[name], "direction": m.direction} for name, m in self.metrics.items()},
            "forwards": forwards,
        }
        self.files.write_facts(self.facts)
        return todo

    def _misfit(self) -> str:
        return self.samples.classes.misfit(self.expected[1]) if self.expected else ""

    def _identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        settings = _plain_settings(self.settings)
        for name in ("device", "pretrained", "checkpoint", "resamples", "data", "output", "split"):
            settings.pop(name)
        if all(metric.ours for metric in self.metrics.values()):
            settings.pop("forward_batch")  # Quantus' own metrics sample per batch
        settings["targets"] = "label" if self.by_label else "predicted"
        if self.subject.output is not None:
            settings["output"] = fingerprint(self.subject.output)
        return {
            "settings": settings | {"methods": list(self.methods), "metrics": list(self.metrics)},
            "methods": {name: fingerprint(method.make) for name, method in self.methods.items()},
            "metrics": {name: metric.source for name, metric in self.metrics.items()},
            "weights": weights_hash(self.subject.model),
            "samples": self.samples.fingerprint(),
            "device": torch.device(self.workers.device).type,
        }

    def _expected_bytes(self) -> int:
        cells = self.count * len(self.methods) * len(self.metrics)
        pictures = min(self.count, self.settings.gallery)
        return cells * (_BYTES["row"] + _BYTES["curve"]) + pictures * _BYTES["picture"]

    def _check_methods(self) -> dict[str, float]:
        """Explain one sample by each method; returns what that costs in forward passes.

        Raises:
            ValueError: if methods do not fit the model; the message says why for each.
        """
        first = self._first()
        model = self.evaluate.model
        x = placement_of(model).moved(first.image[None])
        y, _ = self.evaluate.classes([first], x)
        forwards, refused = {}, []
        names = tqdm(self.evaluate.explains.items(), desc="checking methods", unit="method", leave=False, disable=None)
        for name, explain in names:
            try:
                with seeded_for(self.settings.seed, "check", 0):
                    if self.methods[name].needs_warm_up:
                        explain(model, x, y)  # work that is done once is not counted
                    forwards[name] = in_forwards(lambda explain=explain: explain(model, x, y), model, x)  # type: ignore[misc]
            except (AssertionError, TypeError, ValueError, NotImplementedError) as error:  # Captum asserts
                refused.append(f"- {name}: {error}")
            except Exception as error:  # perhaps of this sample only; if not, every cell records it
                warnings.warn(f"{name} failed on the first sample: {type(error).__name__}: {error}", stacklevel=2)
                forwards[name] = float("nan")
        if refused:
            raise ValueError(
                f"{len(refused)} of {len(self.methods)} methods do not fit this {type(self.subject.model).__name__}; "
                "leave them out, or set the options that they ask for:\n" + "\n".join(refused)
            )
        return forwards

    def _work(self, todo: list[int]) -> None:
        mine = todo[self.workers.rank :: self.workers.count]
        size = self.settings.batch_size

        def finished() -> int:
            return sum(min(size, self.count - start) for start in self.files.finished())

        watched = sys.stderr.isatty()
        bar = tqdm(
            total=self.count,
            initial=finished(),
            desc="comparing",
            unit="sample",
            disable=not self.workers.is_main,
            mininterval=0.1 if watched else 30,  # few lines where a log is written
            smoothing=0.1,
        )
        with bar:
            for start in mine:
                self.files.write(start, self._batch(start, lambda doing: bar.set_postfix_str(doing, refresh=watched)))
                bar.update(finished() - bar.n)

    def _batch(self, start: int, tell: Callable[[str], None]) -> Batch:
        indices = range(start, min(start + self.settings.batch_size, self.count))
        found = [self._read(index) for index in indices]
        batch = self.evaluate([one for one in found if isinstance(one, Sample)], tell)
        batch.skipped = [one for one in found if not isinstance(one, Sample)]
        return batch

    def _end(self, comparison: Comparison) -> None:
        ended = datetime.now(UTC)
        if "ended" not in self.facts:
            self.facts["ended"] = ended.isoformat(timespec="seconds")
            self.facts["seconds"] = (ended - datetime.fromisoformat(self.facts["started"])).total_seconds()
        self.files.write_facts(self.facts)
        subject = self.subject
        known = subject.mean is not None and subject.std is not None
        normalised = {"mean": subject.mean, "std": subject.std} if known else {}
        comparison.finish(self.settings.resamples, dict(enumerate(subject.labels)), normalised)


def _plain_settings(settings: Settings) -> dict[str, Any]:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
    plain.pop("out")  # a run's folder may be moved
    return plain


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device_name(device: str, processes: int) -> str:
    kind, threads = torch.device(device), torch.get_num_threads()
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else platform.processor() or platform.machine()
    said = [name] + [f"{processes} processes"] * (processes > 1)
    if kind.type == "cpu":
        said.append(f"{threads} thread{'s' * (threads > 1)}{' each' * (processes > 1)}")
    return f"{kind.type if processes > 1 else device} ({', '.join(said)})"
