"""The results of a method on a task, kept as soon as they are there."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapters.models import add_tensor

from .._isolation import said
from .._method import Method
from .._models import moved, weights_hash
from .._seeding import seeded_for
from .._settings import Settings
from .._storage import Storage
from .task import Problem, Task


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        scores: Of each score the number of each sample; empty where the method failed.
        error: Why it failed, or "".
        seconds: What it took.
    """

    scores: Mapping[str, list[float]] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


def fingerprint(problem: Problem) -> str:
    """A text that changes with the model, the samples and the truth."""
    digest = hashlib.sha256(weights_hash(problem.model).encode())
    for one in (problem.inputs, problem.targets, *problem.truth.values()):
        add_tensor(digest, one)
    return digest.hexdigest()


def kept(files: Storage, task: Task, name: str, key: str) -> Cell | None:
    """The finished cell, or None where it is not there, or is of other samples, options or weights."""
    path = _path(task, name)
    if not files.exists(path):
        return None
    try:
        read = json.loads(files.read(path))
        return Cell(read["scores"], read["error"], read["seconds"]) if read["key"] == key else None
    except (ValueError, KeyError):  # damaged
        return None


def keep(files: Storage, task: Task, name: str, key: str, cell: Cell) -> None:
    """Write a finished cell."""
    files.write(_path(task, name), json.dumps({"key": key, **vars(cell)}))


def key_of(task: Task, problem: str, method: Method, options: Mapping[str, Any], seed: int) -> str:
    """What a cell's numbers depend on."""
    text = json.dumps([problem, [*task.scores], method.source, {**method.options, **options}, seed], default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


DRAWS = 8  # of random maps, whose mean scores are what a method is compared with


def computed(task: Task, problem: Problem, name: str, method: Method, settings: Settings, draws: int = 1) -> Cell:
    """Explain all samples by the method, and score the maps; of several draws the mean scores are kept."""
    begun = time.perf_counter()
    try:
        drawn = [_maps(task, problem, name, method, settings, draw) for draw in range(draws)]
        scores = {
            key: torch.stack([score.measure(maps, problem).double() for maps in drawn]).mean(0).tolist()
            for key, score in task.scores.items()
        }
    except Exception as error:  # a method that does not fit costs no more than itself
        return Cell(error=said(error), seconds=time.perf_counter() - begun)
    return Cell(scores, seconds=time.perf_counter() - begun)


def _maps(task: Task, problem: Problem, name: str, method: Method, settings: Settings, draw: int) -> Tensor:
    explain = method.explain(settings.options.get(name, {}), settings.at_once)
    device = settings.device or "cpu"
    model, inputs = moved(problem.model, device, ""), problem.inputs.to(device)
    with seeded_for(settings.seed, f"{task.name}/{name}", draw):
        maps = torch.as_tensor(explain(model, inputs, problem.targets.to(device))).float().cpu()
    expected = (len(inputs), 1, *inputs.shape[2:])
    if maps.shape != expected:
        raise ValueError(f"Expected maps of shape {tuple(expected)}, got {tuple(maps.shape)}.")
    if not maps.isfinite().all():
        raise ValueError("Some maps are not finite.")
    return maps[:, 0]


def _path(task: Task, name: str) -> str:
    return f"cells/{task.name}/{name}.json"
