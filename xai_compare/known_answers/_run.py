"""The arena as a Python function."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from .._method import Method
from .._methods import methods_named
from .._progress import progress
from .._seeding import seeded_for
from .._settings import Settings, from_mapping, names_in
from .._storage import Storage
from ._cells import DRAWS, Cell, computed, fingerprint, keep, kept, key_of
from ._page import markdown, page
from ._sheet import RANDOM, sheet
from .task import Conditions, Problem, Task
from .tasks import tasks_named

METHODS = (
    *("cdam", "smooth-cdam", "integrated-cdam", "token-ablation", "attention", "rollout", "relevance", "gradcam"),
    *("hirescam", "ig", "ixg", "smoothgrad", "saliency", "occlusion"),
)
SAMPLES = 48
OUT = "xai-arena"


def arena(
    tasks: str | Iterable[str] = "all",
    methods: Iterable[str] | Mapping[str, Any] | None = None,
    *,
    out: str | Path = OUT,
    seed: int = 0,
    model: str | nn.Module = "digits",
    data: Any = "",
    transform: Any = None,
    cache: str | Path | None = None,
    steps: int | None = None,
    command: str = "",
    **settings: Any,
) -> pd.DataFrame:
    """Run methods on tasks whose answers are known, and write a score sheet.

    What `xai-compare --arena` does. What is finished is kept, by task and method; the same call computes what is
    missing. The folder holds `arena.csv`, `arena.md`, `arena.html`, the cells, and the weights of trained models.

    Args:
        tasks: Names of tasks or groups, as a list or comma-separated; "all": those that need no data.
        methods: Names; or a mapping from names of your choice to method names, classes of Captum or pytorch-grad-cam,
            or functions of the model that return an instance of one. None: `xai_compare.known_answers.METHODS`, which
            are listed as unfit for the models that they do not fit. Random maps are always a row.
        out: The folder.
        seed: The random seed.
        model: For mosaics: an image classifier, or its name as for `compare`.
        data: For mosaics: pictures, as for `compare`.
        transform: Preprocesses the pictures; None: the model's own.
        cache: The folder of trained weights; None: `models` in `out`, or here, where `out` is not on a disk.
        steps: How many training steps at most, for trials; None: as many as each task needs.
        command: The command shown on the page.
        **settings: As in `xai_compare.Settings`: limit (samples of each task), options, device, batch_size, resamples,
            pretrained, checkpoint, split.

    Returns:
        The sheet: a row for each task, score and method, with the mean, its 95 % interval, and the verdict.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a task, method or setting is unknown.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from xai_compare import arena
        >>> table = arena("one-patch", ["ixg", "saliency"], out=tempfile.mkdtemp(), limit=4)
        >>> table.set_index("method")["mean"].to_dict()["ixg"]
        1.0
    """
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ValueError(f"Expected `steps` to be a whole number of at least 1, or None, got {steps!r}.")
    chosen = tasks_named(tasks)
    mapping = isinstance(methods, Mapping)
    names = {} if mapping else {"methods": METHODS if methods is None else names_in(methods, "methods")}
    given = from_mapping({"out": str(out), "seed": seed} | names | settings)
    contestants = methods_named(methods if mapping else given.methods)
    contestants.setdefault(RANDOM, methods_named([RANDOM])[RANDOM])
    _check_options(given, chosen, contestants)
    files = Storage(out)
    folder = Path(cache) if cache is not None else (files.local or Path(OUT)) / "models"
    conditions = Conditions(given.limit or SAMPLES, seed, folder, steps, {}, given, model, data, transform)
    return _Arena(chosen, contestants, files, conditions, command)()


def _check_options(settings: Settings, tasks: Iterable[Task], methods: Mapping[str, Method]) -> None:
    known = [*(task.name for task in tasks), *methods, "model", "data"]
    unused = [name for name in settings.options if name not in known]
    if unused:
        raise ValueError(
            f"Options are given for {', '.join(unused)}, which is not a task or method of this run. Options can be "
            f"given for {', '.join(known)}."
        )


class _Arena:
    """One run of the arena."""

    def __init__(
        self, tasks: list[Task], methods: dict[str, Method], files: Storage, conditions: Conditions, command: str
    ) -> None:
        self.tasks, self.methods, self.files, self.conditions = tasks, methods, files, conditions
        self.command = command
        self.cells: dict[tuple[str, str], Cell] = {}
        self.accuracies: dict[str, float] = {}

    def __call__(self) -> pd.DataFrame:
        settings = self.conditions.settings
        bar = progress(total=len(self.tasks) * len(self.methods), desc="arena", unit="cell")
        with bar:
            for task in self.tasks:
                self._run(task, bar)
        table = sheet(self.tasks, self.cells, self.accuracies, settings.resamples, settings.seed)
        titles = {name: method.title or name for name, method in self.methods.items()}
        facts = {"command": self.command, "seed": settings.seed, "samples": self.conditions.samples}
        self.files.write("arena.csv", table.to_csv(index=False))
        self.files.write("arena.md", markdown(table, self.tasks, titles))
        self.files.write("arena.html", page(table, self.tasks, titles, facts))
        self.files.write("arena.json", json.dumps(facts | {"tasks": [task.name for task in self.tasks]}, indent=1))
        return table

    def _run(self, task: Task, bar: Any) -> None:
        settings = self.conditions.settings
        options = settings.options.get(task.name, {})
        with seeded_for(settings.seed, f"arena {task.name}", 0):  # layers draw weights as they are made
            problem: Problem = task.make(replace(self.conditions, options=options))
        self.accuracies[task.name] = problem.accuracy
        mark = fingerprint(problem)
        for name, method in self.methods.items():
            bar.set_postfix_str(f"{task.name}, {name}")
            key = key_of(task, mark, method, settings.options.get(name, {}), settings.seed)
            cell = kept(self.files, task, name, key)
            if cell is None:
                cell = computed(task, problem, name, method, settings, DRAWS if name == RANDOM else 1)
                if not cell.error:  # what failed, perhaps for want of memory, is tried again
                    keep(self.files, task, name, key, cell)
            self.cells[task.name, name] = cell
            bar.update()
