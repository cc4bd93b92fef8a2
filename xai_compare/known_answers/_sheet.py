"""The score sheet: for each task, method and score the mean, its interval, and whether the method passes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._statistics import interval
from ._cells import Cell
from .task import Score, Task

RANDOM = "random"
PASSES, PARTLY, AS_RANDOM, WORSE, UNFIT = (
    "passes",
    "better than random",
    "as random",
    "worse than random",
    "does not fit",
)
FAILS = (AS_RANDOM, WORSE)
UNLEARNED = "model has not learned the task"
LEARNED = 0.8  # accuracy below which a trained model's maps are not judged
CONTROL = "control"
COLUMNS = ["task", "score", "method", "n", "mean", "ci_low", "ci_high", "random", "gain", "gain_low", "gain_high"]
COLUMNS += ["needed", "chance", "verdict", "accuracy", "seconds", "error"]


def sheet(
    tasks: Sequence[Task],
    cells: Mapping[tuple[str, str], Cell],
    accuracies: Mapping[str, float],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """One row for each task, score and method.

    Args:
        tasks: In the order of the rows.
        cells: By names of task and method; `random` is one of the methods.
        accuracies: Of the tasks' models.
        resamples: Number of resamples of the percentile bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        The columns task, score, method, n, mean, ci_low and ci_high (95 %), random (the mean of random maps), gain
        (mean less random) with gain_low and gain_high (95 %, paired by samples), needed, chance (NaN where
        it is not known on paper), verdict, accuracy, seconds and error.
    """
    rows = []
    for task in tasks:
        noise = cells[task.name, RANDOM]
        for key, score in task.scores.items():
            for method in [method for name, method in cells if name == task.name]:
                cell = cells[task.name, method]
                numbers = _numbers(cell.scores.get(key, []), noise.scores.get(key, []), resamples, seed)
                facts: dict[str, Any] = {
                    "task": task.name,
                    "score": key,
                    "method": method,
                    **numbers,
                    "needed": score.needed,
                }
                facts["chance"] = score.chance
                facts["verdict"] = CONTROL if method == RANDOM else _verdict(facts, score)
                if accuracies[task.name] < LEARNED and facts["verdict"] not in (CONTROL, UNFIT):
                    facts["verdict"] = UNLEARNED
                rows.append(facts | {"accuracy": accuracies[task.name], "seconds": cell.seconds, "error": cell.error})
    return pd.DataFrame(rows, columns=COLUMNS)


def _numbers(values: list[float], noise: list[float], resamples: int, seed: int) -> dict[str, float]:
    own, other = np.asarray(values, float), np.asarray(noise, float)
    if not len(own) or not len(other):
        return dict.fromkeys(COLUMNS[4:11], np.nan) | {"n": len(own)}
    low, high = interval(own, resamples, seed)
    gain_low, gain_high = interval(own - other, resamples, seed)
    return {
        "n": len(own),
        "mean": own.mean(),
        "ci_low": low,
        "ci_high": high,
        "random": other.mean(),
        "gain": (own - other).mean(),
        "gain_low": gain_low,
        "gain_high": gain_high,
    }


def _verdict(facts: Mapping[str, Any], score: Score) -> str:
    """Whether a method passes: its interval against random maps, and its mean against what is needed."""
    if not facts["n"]:
        return UNFIT
    if facts["gain_high"] < 0:
        return WORSE
    if not facts["gain_low"] > 0:
        return AS_RANDOM
    return PASSES if facts["mean"] >= score.needed else PARTLY


def deciding(table: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    """The rows of each task's first score, which decides whether a method passes."""
    first = {task.name: next(iter(task.scores)) for task in tasks}
    return table[table.score == table.task.map(first)]
