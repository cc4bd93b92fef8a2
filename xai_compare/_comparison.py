"""A finished run: its tables and its report."""

import io
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from ._display import visible
from ._report import Curve, Picture, render
from ._run_folder import RunFolder
from ._statistics import between_models, curve_means, pairwise, summarise

_TEXT = ("model", "model_a", "model_b", "metric", "direction", "method", "method_a", "method_b")
# Columns of names, which stay text: a method may be called "1" or "null".
_NAMES: dict[Hashable, Any] = dict.fromkeys(_TEXT, str)


class Comparison:
    """The results of a run, read from its folder.

    Attributes:
        folder: The run's folder.

    Raises:
        ValueError: if the folder holds no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self._files = RunFolder(folder)
        self.folder = self._files.files.local or str(folder)
        if not self._files.files.exists("run.json"):
            raise ValueError(f"{folder} holds no run: there is no run.json.")

    @property
    def run(self) -> dict[str, Any]:
        """Facts about the run: settings, versions, seed, command, costs."""
        return self._files.facts()

    def scores(self) -> pd.DataFrame:
        """One row for each sample, method and metric: sample, target, method, metric, score, error, seconds.

        This table and the others begin with a column `model` where the run has several models.
        """
        return self._of_models(self._files.table("scores"))

    def explanations(self) -> pd.DataFrame:
        """One row for each sample and method: sample, name, target, method, error, seconds."""
        return self._of_models(self._files.table("explanations"))

    def failed_everywhere(self) -> list[tuple[str, ...]]:
        """The methods and metrics, behind their model where there are several, that have no score on any sample."""
        scores = self.scores()
        cells = [name for name in ("model", "method", "metric") if name in scores]
        failed = scores.assign(failed=scores.error.notna()).groupby(cells, sort=False).failed.all()
        return [tuple(map(str, cell)) for cell in failed[failed].index]

    def skipped(self) -> pd.DataFrame:
        """The samples that could not be read: sample, name, error."""
        return self._of_models(self._files.table("skipped"))

    def small_maps(self) -> pd.DataFrame:
        """One row for each sample and method: sample, method, shape, map.

        Maps are averaged over their channels, and down to at most 1,024 places: `row["map"].reshape(row["shape"])`.
        """
        return self._of_models(self._files.table("small_maps"))

    def summary(self) -> pd.DataFrame:
        """As written to `summary.csv`: a row for each metric and method."""
        return self._of_models(self._csv("summary.csv"))

    def tests(self) -> pd.DataFrame:
        """As written to `tests.csv`: paired tests of all pairs of methods."""
        return self._of_models(self._csv("tests.csv"))

    def model_tests(self) -> pd.DataFrame:
        """As written to `model_tests.csv`: paired tests of all pairs of models; without rows if there is one model."""
        return self._csv("model_tests.csv")

    def report(self) -> Path | str:
        """The path of the HTML report, or its URL if the run's folder is one."""
        folder = self.folder
        return folder / "report.html" if isinstance(folder, Path) else self._files.files.place("report.html")

    def finish(self, resamples: int) -> None:
        """Write summary.csv, tests.csv, model_tests.csv and report.html.

        Args:
            resamples: Number of bootstrap resamples.
        """
        facts, scores, explanations = self.run, self._files.table("scores"), self._files.table("explanations")
        models, methods, metrics = facts["models"], facts["methods"], facts["metrics"]
        directions = {name: about["direction"] for name, about in metrics.items()}
        costs = explanations.groupby(["model", "method"]).seconds.mean()
        summaries, tests = [], []
        for model in models:
            of_model = scores[scores.model == model]
            summary = summarise(of_model, directions, methods, resamples, facts["seed"])
            summary["explain_seconds"] = [costs.get((model, method)) for method in summary.method]
            summary["explain_forwards"] = summary.method.map(models[model]["forwards"])
            summaries.append(summary.assign(model=model))
            tests.append(pairwise(of_model, metrics, methods).assign(model=model))
        tables = {
            "summary.csv": _model_first(pd.concat(summaries, ignore_index=True)),
            "tests.csv": _model_first(pd.concat(tests, ignore_index=True)),
            "model_tests.csv": between_models(scores, metrics, methods, models),
        }
        for name, table in tables.items():
            self._files.files.write(name, table.to_csv(index=False))
        page = render(
            self._described(facts, scores),
            tables["summary.csv"],
            tables["tests.csv"],
            [
                Curve(r.metric, r.method, r.curve, r.axis, r.x, r.mean, r.low, r.high)
                for r in _rows(curve_means(self._files.parts("curves")))
            ],
            [_picture(one, models[one["model"]]) for one in self._files.pictures()],
        )
        self._files.files.write("report.html", page)

    def _csv(self, name: str) -> pd.DataFrame:
        text = self._files.files.read(name)
        numbers = [column for column in map(str, pd.read_csv(io.BytesIO(text), nrows=0)) if column not in _NAMES]
        missing = {column: [""] for column in numbers}
        return pd.read_csv(io.BytesIO(text), dtype=_NAMES, keep_default_na=False, na_values=missing)

    def _of_models(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table without its column `model` if there is one model."""
        return table if len(self.run["models"]) > 1 else table.drop(columns="model")

    def _described(self, facts: dict[str, Any], scores: pd.DataFrame) -> dict[str, Any]:
        failed = scores.dropna(subset=["error"])
        errors = failed.groupby(["method", "metric"], sort=False).error.agg(count_="size", first_="first").reset_index()
        skipped = self.skipped()
        return facts | {
            "finished": int(scores["sample"].nunique()),
            "failed": len(failed),
            "errors": [
                {"method": r.method, "metric": r.metric, "count": int(r.count_), "error": r.first_}
                for r in _rows(errors)
            ],
            "skipped": [{"sample": r.name, "error": r.error} for r in _rows(skipped)],
        }


def _model_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["model", *(name for name in table if name != "model")]]


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, whose types pandas' stubs do not know."""
    yield from table.itertuples(index=False)


def _picture(kept: dict[str, Any], model: Mapping[str, Any]) -> Picture:
    labels = {-1: "the target function"} | dict(enumerate(model["labels"]))
    maps: dict[int, dict[str, npt.NDArray[Any]]] = {int(cls): {} for cls in kept["classes"]}
    for (method, cls), heat in kept["maps"].items():
        maps[cls][method] = heat
    return Picture(
        sample=kept["name"],
        image=visible(kept["image"], model["normalised"]),
        target=int(kept["classes"][0]),
        classes={int(cls): labels.get(int(cls), f"class {cls}") for cls in kept["classes"]},
        maps=maps,
    )
