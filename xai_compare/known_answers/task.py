"""What a task of the arena is: a model, samples whose explanation is known, and scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._settings import Settings


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a task is made.

    Attributes:
        samples: How many samples are explained.
        seed: The random seed.
        cache: The folder in which trained weights are kept.
        steps: How many training steps at most; None: as many as the task needs.
        options: Options of the task, as the folder of its data.
        settings: Of the call: the user's model and data, and the device.
        model: The user's model or its name.
        data: The user's data.
        transform: Preprocesses the user's pictures; None: the model's own.
    """

    samples: int
    seed: int
    cache: Path
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    model: Any = "digits"
    data: Any = ""
    transform: Any = None


@dataclass(frozen=True)
class Problem:
    """A model and samples of which the explanation is known.

    Attributes:
        model: In evaluation mode.
        inputs: The samples, (samples, channels, ...).
        targets: (samples,), the class that is explained.
        truth: What is known, by names that the scores of the task read.
        accuracy: The model's accuracy on samples that it was not trained on; NaN where it was not trained.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    truth: Mapping[str, Tensor]
    accuracy: float = float("nan")


Measure = Callable[[Tensor, Problem], Tensor]  # maps (samples, ...) as the inputs, without channels: (samples,)


@dataclass(frozen=True)
class Score:
    """A score of a task, from 0 to 1; higher is better.

    Attributes:
        title: What it is called.
        measure: Its value for each sample.
        needed: The mean that a method needs to pass; 0: it must only be better than random maps.
        chance: The mean of random maps, where it is known on paper; NaN: it is measured only.
    """

    title: str
    measure: Measure
    needed: float = 0.0
    chance: float = float("nan")


@dataclass(frozen=True)
class Task:
    """A task whose answer is known.

    Attributes:
        name: Its name.
        title: What the page calls it.
        group: Under which name it is listed with similar ones, and chosen together with them.
        about: What is explained, and what is known about it.
        make: Makes the problem.
        scores: By name; the first one decides whether a method passes.
        note: What the user must give, or "".
    """

    name: str
    title: str
    group: str
    about: str
    make: Callable[[Conditions], Problem]
    scores: Mapping[str, Score]
    note: str = ""
