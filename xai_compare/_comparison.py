"""A finished run: its tables and its report."""

import html
from pathlib import Path
from typing import Any

import pandas as pd

from ._finish import write_report, write_statistics
from ._run_folder import CHECKED, RunFolder


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
        return self._of_models(self._files.csv("summary.csv"))

    def tests(self) -> pd.DataFrame:
        """As written to `tests.csv`: paired tests of all pairs of methods."""
        return self._of_models(self._files.csv("tests.csv"))

    def model_tests(self) -> pd.DataFrame:
        """As written to `model_tests.csv`: paired tests of all pairs of models; without rows if there is one model."""
        return self._files.csv("model_tests.csv")

    def agreement(self) -> pd.DataFrame:
        """As written to `agreement.csv`: how far each pair of methods agrees."""
        return self._of_models(self._files.csv("agreement.csv"))

    def agreement_by_sample(self) -> pd.DataFrame:
        """As written to `agreement-by-sample.csv`: how far the methods agree on each sample, the lowest first."""
        return self._of_models(self._files.csv("agreement-by-sample.csv"))

    def trust(self) -> pd.DataFrame:
        """As written to `trust.csv`: what `captum_ext.check` says of each map that was checked.

        A row for each sample and method: sample, name, target, method, verdict, reasons, the numbers of
        `captum_ext.Trust`, notes; or an error.

        Raises:
            ValueError: if no map was checked.
        """
        if not self._files.files.exists(CHECKED):
            raise ValueError("No map of this run was checked: repeat its command with --check 4, in Python check=4.")
        return self._of_models(self._files.csv(CHECKED))

    def report(self, model: str = "") -> Path | str:
        """The path of the HTML report, or its URL if the run's folder is one.

        Args:
            model: Of several models, the one whose page is meant; "": the page that has all side by side.
        """
        name = f"report-{model}.html" if model else "report.html"
        return self.folder / name if isinstance(self.folder, Path) else self._files.files.place(name)

    def _repr_html_(self) -> str:
        """What a notebook shows: the summary, and where the report is."""
        table = self.summary().to_html(index=False, float_format="{:.4g}".format, border=0)
        return f"<p>Report: {html.escape(str(self.report()))}</p>{table}"

    def finish(self, resamples: int) -> None:
        """Write the statistics and the report.

        Args:
            resamples: Number of bootstrap resamples.
        """
        write_report(self._files, write_statistics(self._files, resamples))

    def _of_models(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table without its column `model` if there is one model."""
        return table if len(self.run["models"]) > 1 else table.drop(columns="model")
