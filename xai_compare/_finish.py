"""What is made of the tables of a run at its end: statistics and the report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import pandas as pd

from ._agreement import agreement
from ._critical_difference import Ranking, rankings
from ._display import visible
from ._report import Curve, Picture, render
from ._report_models import overview
from ._run_folder import CHECKED, RunFolder
from ._statistics import between_models, curve_means, pairwise, summarise


@dataclass(frozen=True)
class Statistics:
    """Of one model.

    Attributes:
        summary: A row for each metric and method.
        tests: A row for each metric and pair of methods.
        rankings: Ranks of the methods in each metric.
        by_pair: How far pairs of methods agree.
        by_sample: How far methods agree on each sample.
    """

    summary: pd.DataFrame
    tests: pd.DataFrame
    rankings: list[Ranking]
    by_pair: pd.DataFrame
    by_sample: pd.DataFrame


@dataclass(frozen=True)
class AllStatistics:
    """Of all models by name, and paired tests between them."""

    of: Mapping[str, Statistics]
    model_tests: pd.DataFrame


def write_statistics(folder: RunFolder, resamples: int) -> AllStatistics:
    """Compute and write summary.csv, tests.csv, model_tests.csv, agreement.csv and agreement-by-sample.csv."""
    facts, scores, explanations = folder.facts(), folder.table("scores"), folder.table("explanations")
    models, methods, metrics, seed = facts["models"], facts["methods"], facts["metrics"], facts["seed"]
    directions = {name: about["direction"] for name, about in metrics.items()}
    found = {}
    for model in models:
        of_model, explained = (table[table.model == model] for table in (scores, explanations))
        summary = summarise(of_model, directions, methods, resamples, seed)
        summary["explain_seconds"] = summary.method.map(explained.groupby("method").seconds.mean())
        summary["explain_forwards"] = summary.method.map(models[model]["forwards"])
        tests = pairwise(of_model, metrics, methods, resamples, seed)
        by_pair, by_sample = agreement(_of(model, folder, "small_maps"), methods, resamples, seed)
        names = explained.drop_duplicates("sample").set_index("sample")["name"]
        by_sample.insert(1, "name", by_sample["sample"].map(names))
        found[model] = Statistics(summary, tests, rankings(of_model, directions, tests), by_pair, by_sample)
    between = between_models(scores, metrics, methods, models, resamples, seed)
    tables = {
        "summary": [one.summary for one in found.values()],
        "tests": [one.tests for one in found.values()],
        "agreement": [one.by_pair for one in found.values()],
        "agreement-by-sample": [one.by_sample for one in found.values()],
    }
    for name, parts in tables.items():
        table = pd.concat([part.assign(model=model) for model, part in zip(models, parts, strict=True)])
        table = table[["model", *(column for column in table if column != "model")]]
        folder.files.write(f"{name}.csv", table.to_csv(index=False))
    folder.files.write("model_tests.csv", between.to_csv(index=False))
    return AllStatistics(found, between)


def write_report(folder: RunFolder, statistics: AllStatistics) -> None:
    """Write report.html; of several models a page for each, report-MODEL.html, and one that has them side by side."""
    facts, kept = folder.facts(), folder.pictures()
    models = facts["models"]
    pictures = {
        model: [picture_of(one, about) for one in kept if one["model"] == model] for model, about in models.items()
    }
    for model, found in statistics.of.items():
        page = render(
            _described(folder, facts, model),
            found.summary,
            found.tests,
            [
                Curve(r.metric, r.method, r.curve, r.axis, r.x, r.mean, r.low, r.high)
                for r in _rows(curve_table(folder, model))
            ],
            pictures[model],
            rankings=found.rankings,
            by_pair=found.by_pair,
            by_sample=found.by_sample,
            checked=_checked(folder, model),
        )
        folder.files.write("report.html" if len(models) == 1 else f"report-{model}.html", page)
    if len(models) > 1:
        summaries = {model: found.summary for model, found in statistics.of.items()}
        page = overview(_described(folder, facts, ""), summaries, statistics.model_tests, pictures, _same(folder))
        folder.files.write("report.html", page)


def curve_table(folder: RunFolder, model: str) -> pd.DataFrame:
    """The mean curves of a model, as `curve_means` returns them."""
    facts = folder.facts()
    return curve_means(_of(model, folder, "curves"), facts["settings"]["resamples"], facts["seed"])


def _checked(folder: RunFolder, model: str) -> pd.DataFrame | None:
    """What was checked of a model's maps, or None."""
    if not folder.files.exists(CHECKED):
        return None
    found = folder.csv(CHECKED)
    return found[found.model == model]


def _of(model: str, folder: RunFolder, table: str) -> Iterator[pd.DataFrame]:
    return (part[part.model == model] for part in folder.parts(table))


def _same(folder: RunFolder) -> tuple[int, int]:
    """On how many samples all models explain the same class, and how many all have."""
    found = folder.table("explanations")
    targets = found.drop_duplicates(["model", "sample"]).pivot(index="sample", columns="model", values="target")
    targets = targets.dropna()
    return int((targets.nunique(axis=1) == 1).sum()), len(targets)


def _described(folder: RunFolder, facts: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What the report says of a run, or of one of its models."""
    scores, skipped = folder.table("scores"), folder.table("skipped")
    if model:
        about = facts["models"][model]
        facts = {**facts, "model": about["title"], **{k: about[k] for k in ("weights", "data", "classes", "samples")}}
        scores, skipped = scores[scores.model == model], skipped[skipped.model == model]
    else:
        weights = [f"{about['title']}: {about['weights']}" for about in facts["models"].values()]
        facts = {**facts, "weights": "; ".join(weights)}
    failed = scores.dropna(subset=["error"])
    errors = failed.groupby(["method", "metric"], sort=False).error.agg(count_="size", first_="first").reset_index()
    models = [model] if model else list(facts["models"])
    unfit = [
        (method, facts["models"][name]["title"], why)
        for name in models
        for method, why in facts["models"][name]["unfit"].items()
    ]
    return {
        **facts,
        "finished": int(scores["sample"].nunique()),
        "failed": len(failed),
        "errors": [
            {"method": r.method, "metric": r.metric, "count": int(r.count_), "error": r.first_} for r in _rows(errors)
        ],
        "skipped": [{"sample": r.name, "error": r.error} for r in _rows(skipped.drop_duplicates("sample"))],
        "unfit": [{"method": method, "model": name, "error": why} for method, name, why in unfit],
    }


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, whose types pandas' stubs do not know."""
    yield from table.itertuples(index=False)


def picture_of(kept: dict[str, Any], model: Mapping[str, Any]) -> Picture:
    """What the report shows of a sample that was kept for the gallery, of a model as `run.json` describes it."""
    labels = {-1: kept.get("asked") or "the target function"} | dict(enumerate(model["labels"]))
    maps: dict[int, dict[str, npt.NDArray[Any]]] = {int(cls): {} for cls in kept["classes"]}
    for (method, cls), heat in kept["maps"].items():
        maps[cls][method] = heat
    return Picture(
        sample=kept["name"],
        image=visible(kept["image"], model["normalised"]),
        target=int(kept["classes"][0]),
        classes={int(cls): labels.get(int(cls), f"class {cls}") for cls in kept["classes"]},
        maps=maps,
        index=int(kept["index"]),
    )
