"""Several models side by side, as the report shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ._report import Picture, render
from ._report_table import Cell, Records, Table, counted, entry, metric_column, test_table, to_float
from ._statistics import SIGNIFICANT

_ROUNDING = 2.0  # of 255, by which images may differ that were normalised in different ways


@dataclass(frozen=True)
class Side:
    """One metric, with a row for each method and a cell for each model."""

    title: str
    hint: str
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Models:
    """What the page says of the models.

    Attributes:
        titles: By name.
        words: Sentences.
        tables: One for each metric.
        tests: All paired tests.
    """

    titles: Mapping[str, str]
    words: Sequence[str]
    tables: Sequence[Side]
    tests: Table


def overview(
    run: Mapping[str, Any],
    summaries: Mapping[str, pd.DataFrame],
    model_tests: pd.DataFrame,
    pictures: Mapping[str, Sequence[Picture]],
    same: tuple[int, int],
) -> str:
    """The page that has all models side by side.

    Args:
        run: What was run, as `render` takes it; `models` holds the title of each.
        summaries: Of each model, as `render` takes them.
        model_tests: A row for each metric, method and pair of models.
        pictures: Of each model.
        same: On how many samples all models explain the same class, and how many there are.
    """
    titles = {name: str(about["title"]) for name, about in run["models"].items()}
    methods, metrics = _titled(run, "methods"), _titled(run, "metrics")
    pairs: Records = model_tests.rename(columns={"model_a": "method_a", "model_b": "method_b"}).to_dict("records")
    rows = [row | {"model": name} for name, table in summaries.items() for row in table.to_dict("records")]
    tables = [_side(run, rows, pairs, titles, methods, metric, title) for metric, title in metrics.items()]
    models = Models(
        titles,
        [*_words(run, pairs, titles), _said_of_classes(*same)],
        tables,
        _test_table(pairs, titles, metrics, methods),
    )
    joined, drawn = _side_by_side(pictures, methods, titles)
    empty = pd.DataFrame()
    return render(run, empty, empty, [], joined, models=models, drawn=drawn)


def _titled(run: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {name: str(entry(run, kind, name).get("title") or name) for name in run[kind]}


def _side(
    run: Mapping[str, Any],
    rows: Records,
    pairs: Records,
    models: Mapping[str, str],
    methods: Mapping[str, str],
    metric: str,
    title: str,
) -> Side:
    found = []
    for method, name in methods.items():
        own = [row | {"method": row["model"]} for row in rows if row["method"] == method]
        tests = [row for row in pairs if row["method"] == method]
        column = metric_column(run, own, tests, models, metric, title)
        found.append((name, [column.cells[model] for model in models], column.hint))
    return Side(title, found[0][2] if found else "", [(name, cells) for name, cells, _ in found])


def _test_table(pairs: Records, models: dict[str, str], metrics: dict[str, str], methods: dict[str, str]) -> Table:
    of_pairs = test_table(pairs, models, metrics)
    heads = ("Metric", "Method", "Model a", "Model b", *of_pairs.heads[3:])
    rows = [(r[0], methods[pair["method"]], *r[1:]) for r, pair in zip(of_pairs.rows, pairs, strict=True)]
    return replace(of_pairs, name="model-pairs", heads=heads, rows=rows)


def _words(run: Mapping[str, Any], pairs: Records, models: Mapping[str, str]) -> list[str]:
    """For each pair of models in how many comparisons either is significantly better."""
    said = []
    for a, b in dict.fromkeys((row["method_a"], row["method_b"]) for row in pairs):
        signs = [_sign(run, row) for row in pairs if (row["method_a"], row["method_b"]) == (a, b)]
        better = {models[a]: signs.count(1), models[b]: signs.count(-1)}
        known = sum(sign is not None for sign in signs)
        said.append(
            f"Of {counted(known, 'comparison')} by a method and a metric, "
            + ", ".join(f"{name} is significantly better in {count}" for name, count in better.items())
            + f", and neither in {signs.count(0)}."
        )
    return said


def _sign(run: Mapping[str, Any], row: Mapping[Any, Any]) -> int | None:
    """1 if the first model is significantly better, -1 if the second is, 0 if neither; None where none can be."""
    direction = entry(run, "metrics", row["metric"]).get("direction")
    p, effect = to_float(row.get("p_holm")), to_float(row.get("effect"))
    if not direction or p != p:
        return None
    if p >= SIGNIFICANT or effect == 0:
        return 0
    return 1 if (effect > 0) == (direction == "higher") else -1


def _said_of_classes(same: int, count: int) -> str:
    if same == count:
        return "All models explain the same class on every image."
    images = f"{same:,} of {counted(count, 'image')}"
    return f"All models explain the same class on {images}; on the others each explains its own."


def _side_by_side(
    pictures: Mapping[str, Sequence[Picture]], methods: Mapping[str, str], models: Mapping[str, str]
) -> tuple[list[Picture], dict[str, str]]:
    """The pictures with the maps of all models that saw the same, and what each map is called."""
    drawn = {
        f"{method}@{model}": f"{title}, {name}" for method, title in methods.items() for model, name in models.items()
    }
    found: list[Picture] = []
    explained: dict[tuple[int, int], list[str]] = {}  # of a picture and a class, the models that explain it
    for model, several in pictures.items():
        for one in several:
            at = next((i for i, other in enumerate(found) if _same_picture(one, other)), len(found))
            if at == len(found):
                seen = any(one.index == other.index for other in found)
                sample = f"{one.sample} ({models[model]})" if seen else one.sample
                found.append(replace(one, sample=sample, target=-2, classes={}, maps={}))
            for cls, label in one.classes.items():
                found[at].classes.setdefault(cls, label)
                explained.setdefault((at, cls), []).extend([models[model]] * (cls == one.target))
                maps = {f"{method}@{model}": heat for method, heat in one.maps.get(cls, {}).items()}
                found[at].maps[cls] = found[at].maps.get(cls, {}) | maps
    for (at, cls), names in explained.items():
        said = "all models" if len(names) == len(models) else ", ".join(names)
        found[at].classes[cls] += f" ({said})" * bool(names)
    shown = {name for one in found for maps in one.maps.values() for name in maps}
    found.sort(key=lambda one: one.index or 0)  # stable: what two models saw of a sample stays together
    return found, {name: title for name, title in drawn.items() if name in shown}


def _same_picture(one: Picture, other: Picture) -> bool:
    """Do they show the same part of a sample? Another model's transform may crop it otherwise."""
    if one.index != other.index or one.image.shape != other.image.shape:
        return False
    return float(np.abs(one.image.astype(float) - other.image).mean()) < _ROUNDING
