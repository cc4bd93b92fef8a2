"""Compare methods by metrics on a model and data: resumable, isolated cell by cell, on one process or many."""

import contextlib
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from adapters.models import output_tensor, placement_of
from quantus_metrics._outputs import Returned

from ._comparison import Comparison
from ._evaluation import Batch, Evaluation
from ._input_layout import input_layout
from ._methods import Explain, Method
from ._metrics import Metric
from ._models import PlainLogits, Subject, moved, weights_hash
from ._names import distinct, fingerprint
from ._questioned import Inside, Question
from ._run_folder import RunFolder
from ._samples import Sample, Samples
from ._settings import Settings
from ._trackers import log_run
from ._trial import check_metrics, costs_of_methods, suit, tell_of_outputs
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
_NOT_IN_NUMBERS = ("device", "pretrained", "checkpoint", "resamples", "data", "output", "retry_failed", "forward_batch")
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
    question: Question

    def __call__(self) -> Comparison:
        self.files = RunFolder(self.out)
        problem: Exception | None = None
        with contextlib.ExitStack() as stack:
            if self.workers.is_main:
                try:
                    stack.enter_context(self.files.locked(self.command))
                except Exception as error:
                    problem = error
            problem = self.workers.from_main(problem)
            if problem is not None:
                raise problem
            return self._run()

    def _run(self) -> Comparison:
        settings = self.settings
        self.count = min(len(self.samples), settings.limit or len(self.samples))
        self.by_label = self.question.by_label
        self.expected: tuple[torch.Size, int] | None = None
        if self.by_label:
            self.samples.check_labels()
        elif self.samples.advice:
            warnings.warn(self.samples.advice, stacklevel=3)
        model = self._plain(moved(self.subject.model, self.workers.device, settings.dtype))
        self.evaluate = Evaluation(
            model,
            {name: Inside(self._explain(name, method), self.question) for name, method in self.methods.items()},
            self.metrics,
            self.question,
            self.outputs,
            settings.seed,
            settings.forward_batch,
            settings.gallery,
        )
        suit(self.evaluate, len(self.question.functions) or max(2, self.outputs))
        problem: Exception | None = None
        todo: dict[int, dict[str, list[str]]] = {}
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

    def _explain(self, name: str, method: Method) -> Explain:
        options = self.settings.options.get(name, {})
        return method.explain(options, self.settings.batch_size, self.subject.output)

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
        self.outputs = 0
        if self.question.functions and self.subject.output is None:
            self.expected = first.image.shape, 0
            return model
        chosen = output_tensor(output, self.subject.output, first.image[None])
        if not self.question.functions:
            self.outputs = Returned(chosen, first.image[None]).of_classes(final=True).shape[1]
        self.expected = first.image.shape, max(2, self.outputs)  # one logit answers for two classes
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

    def _begin(self) -> dict[int, dict[str, list[str]]]:
        """Check all that can be checked before any work; returns the cells of each batch that are not finished."""
        versions = _versions()
        facts = self.files.open(self._identity(), self._expected_bytes())
        size = self.settings.batch_size
        sizes = {start: min(size, self.count - start) for start in range(0, self.count, size)}
        cells = {method: list(self.metrics) for method in self.methods}
        todo = self.files.missing(sizes, cells, retry_failed=self.settings.retry_failed)
        if todo and facts.get("versions", versions) != versions:
            old = [f"{name} {v}" for name, v in facts["versions"].items() if versions.get(name) != v]
            new = [f"{name} {versions.get(name)}" for name, v in facts["versions"].items() if versions.get(name) != v]
            raise ValueError(
                f"{self.out} was begun with {', '.join(old)}; here is {', '.join(new)}, with which numbers may differ. "
                "Use the versions it was begun with, or another folder with --out."
            )
        forwards = facts.get("forwards", {})
        known = facts.get("metrics", {})
        forwards |= self._check(
            {name: method for name, method in self.methods.items() if name not in forwards},
            {name: metric for name, metric in self.metrics.items() if name not in known},
        )
        begun = {} if todo else facts  # a finished run only reports again
        titles = distinct({name: method.title or name for name, method in self.methods.items()})
        scores = distinct({name: metric.title for name, metric in self.metrics.items()})
        self.facts = facts | {
            "command": self.command or facts.get("command", ""),
            "settings": _plain_settings(self.settings),
            "versions": begun.get("versions", versions),
            "seed": self.settings.seed,
            "samples": max(self.count, facts.get("samples", 0)),
            "model": self.subject.name,
            "weights": facts["identity"]["weights"],
            "data": self.samples.description,
            "classes": {} if self._misfit() else dict(self.samples.classes.numbers),
            "device": begun.get("device", _device_name(self.workers.device, self.workers.count)),
            "processes": begun.get("processes", self.workers.count),
            "started": facts.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
            "interruptions": facts.get("interruptions", -1) + bool(todo),
            "methods": facts.get("methods", {})
            | {name: {"title": titles[name], "source": m.source} for name, m in self.methods.items()},
            "metrics": facts.get("metrics", {})
            | {name: {"title": scores[name], "direction": m.direction} for name, m in self.metrics.items()},
            "forwards": forwards,
        }
        self.files.write_facts(self.facts)
        return todo

    def _misfit(self) -> str:
        return self.samples.classes.misfit(self.expected[1]) if self.expected else ""

    def _identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on; methods, metrics and samples may be added later."""
        settings = _plain_settings(self.settings)
        options = settings.pop("options")
        for name in (*_NOT_IN_NUMBERS, "log_with", "methods", "metrics", "limit", "split"):
            settings.pop(name)
        settings["options"] = {name: options[name] for name in ("model", "data") if name in options}
        settings["targets"] = "label" if self.by_label else fingerprint(self.question.functions) or "predicted"
        settings["activation"] = fingerprint(self.question.activation)
        if self.subject.output is not None:
            settings["output"] = fingerprint(self.subject.output)
        return {
            "settings": settings,
            "methods": {
                name: {"source": fingerprint(method.make), "options": options.get(name, {})}
                for name, method in self.methods.items()
            },
            "metrics": {
                name: metric.source if metric.ours else {**metric.source, "forward_batch": self.settings.forward_batch}
                for name, metric in self.metrics.items()  # Quantus' own metrics draw their random numbers per batch
            },
            "weights": weights_hash(self.subject.model),
            "samples": self.samples.fingerprint(),
            "device": torch.device(self.workers.device).type,
        }

    def _expected_bytes(self) -> int:
        cells = self.count * len(self.methods) * len(self.metrics)
        pictures = min(self.count, self.settings.gallery)
        return cells * (_BYTES["row"] + _BYTES["curve"]) + pictures * _BYTES["picture"]

    def _check(self, methods: dict[str, Method], metrics: dict[str, Metric]) -> dict[str, float]:
        """Try methods and metrics; returns what each method costs in forward passes."""
        if not methods and not metrics:
            return {}
        first = self._first()
        tell_of_outputs(self.evaluate, first)
        forwards = costs_of_methods(self.evaluate, methods, first)
        found = (self._read(index) for index in range(self.count))
        check_metrics(self.evaluate, metrics, islice((one for one in found if isinstance(one, Sample)), 2))
        return forwards

    def _work(self, todo: dict[int, dict[str, list[str]]]) -> None:
        mine = list(todo)[self.workers.rank :: self.workers.count]
        size = self.settings.batch_size
        again = todo.keys() & self.files.begun()  # to which cells are added; what others have done of these is not seen

        def finished(done: int = 0) -> int:
            whole = sum(min(size, self.count - start) for start in self.files.begun() - again if start < self.count)
            return min(self.count, whole + done)

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
            added = 0
            for start in mine:
                batch = self._batch(start, todo[start], lambda doing: bar.set_postfix_str(doing, refresh=watched))
                self.files.write(start, batch, todo[start])
                added += min(size, self.count - start) * self.workers.count * (start in again)
                bar.update(max(0, finished(added) - bar.n))

    def _batch(self, start: int, cells: dict[str, list[str]], tell: Callable[[str], None]) -> Batch:
        indices = range(start, min(start + self.settings.batch_size, self.count))
        found = [self._read(index) for index in indices]
        batch = self.evaluate([one for one in found if isinstance(one, Sample)], cells, tell)
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
        labels = {-1: "the target function"} | dict(enumerate(subject.labels))
        comparison.finish(self.settings.resamples, labels, normalised)
        log_run(comparison, self.settings.log_with, labels, normalised)


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
