"""Compare methods by metrics on models and data: resumable, isolated cell by cell, on one process or many."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from adapters.models import OutputChoice, evaluation_mode

from . import _disagreement as disagreement
from . import _trust as trust
from ._candidate import Candidate, listed
from ._compared import Checked, Compared, Scored
from ._comparison import Comparison
from ._estimate import estimate
from ._evaluation import Batch, Step
from ._facts import check_versions, device_name, plain_settings, settings_in_numbers, versions
from ._fingerprint import fingerprint
from ._finish import write_report, write_statistics
from ._methods import Method
from ._names import distinct
from ._parts import Parts
from ._progress import progress
from ._questioned import Question
from ._run_folder import RunFolder
from ._saved_maps import export
from ._settings import Settings
from ._trackers import log_run
from ._workers import Workers, stoppable

T = TypeVar("T")
Todo = dict[int, dict[str, list[str]]]
_UNWRITTEN = 20  # seconds of work that may be lost
_BYTES = {"row": 60, "curve": 900, "map": 4100, "picture": 200_000}  # about what is written


@dataclass
class Run:
    """A run that is ready to begin; calling it runs it.

    Attributes:
        settings: All settings.
        models: By name, functions that load a model; one is kept in memory at a time.
        methods: The methods.
        metrics: The metrics.
        out: The folder.
        command: The command shown in the report.
        workers: The processes.
        question: What is asked of each sample.
        output: Which tensor of what a model returns the logits are; None: by name.
    """

    settings: Settings
    models: Mapping[str, Callable[[], Compared]]
    methods: dict[str, Method]
    metrics: Mapping[str, Scored]
    out: str | Path
    command: str
    workers: Workers
    question: Question
    output: OutputChoice = None
    _loaded: Compared | None = field(default=None, init=False)
    _identities: dict[str, Any] = field(default_factory=dict, init=False)
    _found: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _checked: dict[str, Checked] = field(default_factory=dict, init=False)
    _facts: dict[str, Any] = field(default_factory=dict, init=False)

    def __call__(self) -> Comparison:
        self.files = RunFolder(self.out)
        with contextlib.ExitStack() as stack:
            self._on_main(lambda: stack.enter_context(self.files.locked(self.command)))
            return self._run()

    def _on_main(self, work: Callable[[], T]) -> T:
        """What the main process finds; its error is one of all processes."""
        problem: Exception | None = None
        found: Any = None
        if self.workers.is_main:
            try:
                found = work()
            except Exception as error:
                problem = error
            if self.workers.count == 1 and problem is None:
                return found  # type: ignore[no-any-return]
        problem, found = self.workers.from_main((problem, found if self.workers.count > 1 else None))
        if problem is not None:
            raise problem
        return found  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _model(self, name: str) -> Iterator[Compared]:
        """A model in evaluation mode, loaded unless it was the last one."""
        if self._loaded is None or self._loaded.name != name:
            self._loaded = None  # so that not two are in memory
            self._loaded = self.models[name]()
        with evaluation_mode(self._loaded.subject.model):
            yield self._loaded

    def _run(self) -> Comparison:
        todo = {name: self._begun(name) for name in self.models}
        self.files.models = self._on_main(lambda: self._describe(working=any(todo.values())))
        with stoppable():
            for name, cells in todo.items():
                self._work(name, cells)
                self.workers.wait()
        if self.workers.is_main:
            self._end()
        self.workers.wait()
        return Comparison(self.out)

    def _begun(self, name: str) -> Todo:
        with self._model(name) as one:
            return self._on_main(lambda: self._begin(one))

    def _begin(self, one: Compared) -> Todo:
        """Check all that can be checked of a model before any work; returns its cells that are not finished."""
        self._identities[one.name] = one.identity()
        self._facts = self.files.open(self._identity(), self._expected_bytes(one.count))
        before = self._facts.get("models", {}).get(one.name, {})
        forwards, unfit = before.get("forwards", {}), before.get("unfit", {})
        todo = self._missing(one, unfit)
        if todo:
            check_versions(self.files.files.where, self._facts.get("versions", {}))
        scored = before.get("metrics", ())
        checked = one.check(
            {name: method for name, method in self.methods.items() if name not in forwards | unfit},
            {name: metric for name, metric in one.metrics.items() if name not in scored},
            may_miss=len(self.models) > 1,
        )
        self._checked[one.name] = checked
        self._found[one.name] = one.facts() | {
            "weights": self._identities[one.name]["weights"],
            "forwards": forwards | checked.forwards,
            "unfit": unfit | checked.unfit,
            "metrics": list(dict.fromkeys([*scored, *self.metrics])),
            "samples": max(one.count, before.get("samples", 0)),
        }
        return self._missing(one, unfit | checked.unfit)

    def _missing(self, one: Compared, unfit: Mapping[str, str]) -> Todo:
        size = self.settings.at_once
        sizes = {start: min(size, one.count - start) for start in range(0, one.count, size)}
        cells = {method: list(self.metrics) for method in self.methods if method not in unfit}
        settings = self.settings
        return self.files.of(one.name).missing(
            sizes, cells, retry_failed=settings.retry_failed, with_maps=settings.save_maps
        )

    def _identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on; models, methods, metrics and samples may be added later."""
        settings, question = settings_in_numbers(self.settings), self.question
        asked = fingerprint(question.functions) or self.settings.targets or "predicted"
        settings["targets"] = "label" if question.by_label else asked
        settings["activation"] = fingerprint(question.activation)
        if self.output is not None:
            settings["output"] = fingerprint(self.output)
        options = plain_settings(self.settings)["options"]
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
            "models": dict(self._identities),
            "device": torch.device(self.workers.device).type,
        }

    def _expected_bytes(self, count: int) -> int:
        maps = count * len(self.methods) * len(self.models)
        pictures = min(count, self.settings.gallery) * len(self.models)
        rows = maps * len(self.metrics) * (_BYTES["row"] + _BYTES["curve"])
        return rows + maps * _BYTES["map"] + pictures * _BYTES["picture"]

    def _describe(self, *, working: bool) -> list[str]:
        """Write what is known of the run before the work; returns the names of all of its models.

        Raises:
            ValueError: if a method fits none of the models.
        """
        self._check_that_all_fit()
        facts, workers = self._facts, self.workers
        models = facts.get("models", {}) | self._found
        models = {
            name: models[name] | {"title": title}
            for name, title in distinct({name: one["title"] for name, one in models.items()}).items()
        }
        first = next(iter(models.values()))
        titles = distinct({name: method.title or name for name, method in self.methods.items()})
        scores = distinct({name: metric.title for name, metric in self.metrics.items()})
        begun = {} if working else facts  # a finished run only reports again
        self._facts = facts | {
            "command": self.command or facts.get("command", ""),
            "settings": plain_settings(self.settings),
            "versions": begun.get("versions", versions()),
            "seed": self.settings.seed,
            "samples": max(one["samples"] for one in models.values()),
            "model": ", ".join(one["title"] for one in models.values()),
            "models": models,
            **{name: first[name] for name in ("weights", "data", "classes", "forwards")},
            "device": begun.get("device", device_name(workers.device, workers.count)),
            "processes": begun.get("processes", workers.count),
            "started": facts.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
            "interruptions": facts.get("interruptions", -1) + working,
            "methods": facts.get("methods", {})
            | {name: {"title": titles[name], "source": m.source} for name, m in self.methods.items()},
            "metrics": facts.get("metrics", {})
            | {name: {"title": scores[name], "direction": m.direction} for name, m in self.metrics.items()},
        }
        self.files.write_facts(self._facts)
        return self.files.models

    def _check_that_all_fit(self) -> None:
        unfit = [self._found[name]["unfit"] for name in self.models]
        nowhere = {name: unfit[0][name] for name in self.methods if all(name in one for one in unfit)}
        if nowhere:
            raise ValueError(
                f"{len(nowhere)} of {len(self.methods)} methods fit none of the {len(unfit)} models; leave them out, "
                f"or set the options that they ask for. For the first one:\n{listed(nowhere)}"
            )

    def _work(self, name: str, todo: Todo) -> None:
        if todo:
            with self._model(name) as one:
                self._evaluate(one, todo)

    def _evaluate(self, one: Compared, todo: Todo) -> None:
        parts, workers = self.files.of(one.name), self.workers
        mine = list(todo)[workers.rank :: workers.count]
        theirs = todo.keys() - set(mine) - parts.begun()  # of others; what they add to what is begun is not seen
        sizes = {start: min(self.settings.at_once, one.count - start) for start in todo}
        cells = {start: sizes[start] * sum(map(len, left.values())) for start, left in todo.items()}
        whole = one.count * len(self.methods) * len(self.metrics)
        several = len(self.models) > 1
        with progress(
            total=whole,
            initial=whole - sum(cells.values()),
            desc=f"comparing {one.name}" if several else "comparing",
            unit="score",
            disable=not workers.is_main,
            leave=True,
            delay=0,
        ) as bar:
            if workers.is_main and (said := estimate(self._checked[one.name], one.count, self.methods, self.metrics)):
                bar.write(f"{one.name}: {said}" if several else said, file=sys.stderr)
            before, done = bar.n, 0
            for start in mine:
                for now in self._steps(parts, one, start, todo[start], bar):
                    bar.update(max(0, before + done + sizes[start] * now - bar.n))
                done += cells[start]
                others = sum(cells[start] for start in theirs & parts.begun())
                bar.update(max(0, before + done + others - bar.n))

    def _steps(self, parts: Parts, one: Compared, start: int, todo: Mapping[str, list[str]], bar: Any) -> Iterator[int]:
        """Work on a batch, write what is finished every 20 seconds and at the end, and yield how many cells that is."""
        written, watched = time.monotonic(), sys.stderr.isatty()
        step = Step("", Batch(), {})
        try:
            for step in one.work(start, todo):
                bar.set_postfix_str(step.name, refresh=watched)
                if time.monotonic() - written > _UNWRITTEN and any(step.cells.values()):
                    parts.write(start, step.batch, step.cells)
                    written = time.monotonic()
                yield sum(map(len, step.cells.values()))
        except BaseException:  # also where the caller was stopped
            if any(step.cells.values()):
                parts.write(start, step.batch, step.cells)
            raise
        parts.write(start, step.batch, todo)

    def _check_maps(self, name: str) -> None:
        """Say which maps can be trusted."""
        unfit = self._found[name]["unfit"]
        with self._model(name) as one:
            if isinstance(one, Candidate):
                trust.keep(self.files, one, [method for method in self.methods if method not in unfit])

    def _end(self) -> None:
        ended = datetime.now(UTC)
        if "ended" not in self._facts:
            self._facts["ended"] = ended.isoformat(timespec="seconds")
            self._facts["seconds"] = (ended - datetime.fromisoformat(self._facts["started"])).total_seconds()
        self.files.write_facts(self._facts)
        if self.settings.save_maps:
            export(self.files, self._facts)
        statistics = write_statistics(self.files, self.settings.resamples)
        for name in self.models:
            samples = disagreement.wanted(self.files, name, statistics.of[name].by_sample, self.settings.gallery)
            if samples is not None:
                with self._model(name) as one:
                    disagreement.keep(self.files, one, samples)
        if self.settings.check:
            for name in self.models:
                self._check_maps(name)
        write_report(self.files, statistics)
        log_run(Comparison(self.out), self.settings.log_with)
