"""A finished run: its tables and its report."""

import json
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from ._display import visible
from ._report import Curve, Picture, render
from ._run_folder import RunFolder
from ._statistics import curve_means, pairwise, summarise

# Columns of names, which stay text: a method may be called "1" or "null".
_NAMES: dict[Hashable, Any] = dict.fromkeys(("metric", "direction", "method", "method_a", "method_b"), str)


class Comparison:
    """The results of a run, read from its folder.

    Attributes:
        folder: The run's folder.

    Raises:
        ValueError: if the folder holds no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = RunFolder(self.folder)
        if not (self.folder / "run.json").exists():
            raise ValueError(f"{self.folder} holds no run: there is no run.json.")

    @property
    def run(self) -> dict[str, Any]:
        """Facts about the run: settings, versions, seed, command, costs."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return facts

    def scores(self) -> pd.DataFrame:
        """One row for each sample, method and metric: sample, target, method, metric, score, error, seconds."""
        return self._files.table("scores")

    def explanations(self) -> pd.DataFrame:
        """One row for each sample and method: sample, name, target, method, error, seconds."""
        return self._files.table("explanations")

    def failed_everywhere(self) -> list[tuple[str, str]]:
        """The methods and metrics that have no score on any sample."""
        scores = self.scores()
        failed = scores.assign(failed=scores.error.notna()).groupby(["method", "metric"], sort=False).failed.all()
        return [(str(method), str(metric)) for method, metric in failed[failed].index]

    def skipped(self) -> pd.DataFrame:
        """The samples that could not be read: sample, name, error."""
        return self._files.table("skipped")

    def summary(self) -> pd.DataFrame:
        """As written to `summary.csv`: a row for each metric and method."""
        return _read_csv(self.folder / "summary.csv")

    def tests(self) -> pd.DataFrame:
        """As written to `tests.csv`: paired tests of all pairs of methods."""
        return _read_csv(self.folder / "tests.csv")

    def report(self) -> Path:
        """The path of the HTML report."""
        return self.folder / "report.html"

    def finish(self, resamples: int, labels: Mapping[int, str], normalised: Mapping[str, Any]) -> None:
        """Write summary.csv, tests.csv and report.html.

        Args:
            resamples: Number of bootstrap resamples.
            labels: The classes' names.
            normalised: The mean and std that images were normalised with, to undo it for display; may be empty.
        """
        facts, scores, explanations = self.run, self.scores(), self.explanations()
        methods, metrics = facts["methods"], facts["metrics"]
        directions = {name: about["direction"] for name, about in metrics.items()}
        summary = summarise(scores, directions, methods, resamples, facts["seed"])
        summary["explain_seconds"] = summary.method.map(explanations.groupby("method").seconds.mean())
        summary["explain_forwards"] = summary.method.map(facts["forwards"])
        tests = pairwise(scores, metrics, methods)
        self._files.write_text("summary.csv", summary.to_csv(index=False))
        self._files.write_text("tests.csv", tests.to_csv(index=False))
        page = render(
            self._described(facts, scores),
            summary,
            tests,
            [
                Curve(r.metric, r.method, r.curve, r.axis, r.x, r.mean, r.low, r.high)
                for r in _rows(curve_means(self._curves()))
            ],
            [picture_of(one, labels, normalised) for one in self._files.pictures()],
        )
        self._files.write_text("report.html", page)

    def _curves(self) -> Iterator[pd.DataFrame]:
        for path in sorted((self.folder / "curves.parquet").glob("part-*.parquet")):
            yield pd.read_parquet(path)

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


def _read_csv(path: Path) -> pd.DataFrame:
    numbers = [name for name in map(str, pd.read_csv(path, nrows=0)) if name not in _NAMES]
    missing = {name: [""] for name in numbers}
    return pd.read_csv(path, dtype=_NAMES, keep_default_na=False, na_values=missing)


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, whose types pandas' stubs do not know."""
    yield from table.itertuples(index=False)


def picture_of(kept: dict[str, Any], labels: Mapping[int, str], normalised: Mapping[str, Any]) -> Picture:
    """What the report shows of a sample that was kept for the gallery."""
    maps: dict[int, dict[str, npt.NDArray[Any]]] = {int(cls): {} for cls in kept["classes"]}
    for (method, cls), heat in kept["maps"].items():
        maps[cls][method] = heat
    return Picture(
        sample=kept["name"],
        image=visible(kept["image"], normalised),
        target=int(kept["classes"][0]),
        classes={int(cls): labels.get(int(cls), f"class {cls}") for cls in kept["classes"]},
        maps=maps,
    )
