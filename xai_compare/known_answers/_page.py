"""The score sheet as a page and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ._sheet import AS_RANDOM, CONTROL, FAILS, PARTLY, PASSES, UNFIT, UNLEARNED, WORSE, deciding
from .task import Task

_MARKS = {PASSES: "✓", PARTLY: "~", AS_RANDOM: "✗", WORSE: "✗✗", UNFIT: "-", UNLEARNED: "?", CONTROL: ""}


def page(table: pd.DataFrame, tasks: Sequence[Task], titles: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """The page, which needs no network and no other file.

    Args:
        table: As `sheet` makes it.
        tasks: In the order of the page.
        titles: Of the methods.
        facts: The command, the seed and the number of samples.
    """
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(_asset("known_answers", "arena.html")).render(
        style=_asset("report.css"),
        groups=_groups(table, tasks, titles),
        methods=_failures(table, tasks, titles),
        facts=facts,
        tasks=tasks,
        marks=_MARKS,
        accuracies={name: f"{value:.2f}" for name, value in _accuracies(table).items()},
        unfit=_unfit(table, titles),
    )


def markdown(table: pd.DataFrame, tasks: Sequence[Task], titles: Mapping[str, str]) -> str:
    """The sheet as Markdown: for each group a table of methods and tasks, by the score that decides."""
    blocks = []
    for group in _groups(table, tasks, titles):
        columns = group["columns"]
        head = "| method | " + " | ".join(_head(one) for one in columns) + " |"
        rows = [
            f"| {row['title']} | " + " | ".join(_cell_text(cell) for cell in row["cells"]) + " |"
            for row in group["rows"]
        ]
        blocks.append("\n".join([f"## {group['name']}", "", head, "|---" * (len(columns) + 1) + "|", *rows, ""]))
    key = "; ".join(f"{mark} {verdict}" for verdict, mark in _MARKS.items() if mark)
    return "\n".join(["# Score sheet of the arena", "", f"Means with 95 % bootstrap intervals. {key}.", "", *blocks])


def _head(column: Mapping[str, Any]) -> str:
    return f"{column['title']}: {column['score']}{', ' * bool(column['chance'])}{column['chance']}"


def _cell_text(cell: Mapping[str, Any]) -> str:
    return f"{cell['shown']} {cell['range']} {cell['mark']}".strip()


def _groups(table: pd.DataFrame, tasks: Sequence[Task], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each group its columns, a task's score each, and a row for each method that fits any of its models."""
    groups = []
    for name in dict.fromkeys(task.group for task in tasks):
        columns: list[dict[str, Any]] = [
            {
                "task": task.name,
                "title": task.title,
                "key": key,
                "score": score.title,
                "decides": not place,
                "chance": _chance(score.chance),
            }
            for task in tasks
            if task.group == name
            for place, (key, score) in enumerate(task.scores.items())
        ]
        cells: dict[tuple[str, str, str], Any] = {
            (str(row.task), str(row.score), str(row.method)): row for row in table.itertuples(index=False)
        }
        rows = []
        for method, title in titles.items():
            found = [_cell(cells[one["task"], one["key"], method]) for one in columns]
            if any(cell["verdict"] != UNFIT for cell in found):
                rows.append({"title": title, "cells": found})
        groups.append({"name": name, "columns": columns, "rows": rows})
    return groups


def _chance(chance: float) -> str:
    return f"chance {chance:.2f}" if math.isfinite(chance) else ""


def _cell(row: Any) -> dict[str, Any]:
    known = math.isfinite(row.mean)
    return {
        "verdict": row.verdict,
        "mark": _MARKS[row.verdict],
        "shown": f"{row.mean:.2f}" if known else "",
        "range": f"({row.ci_low:.2f} to {row.ci_high:.2f})" if known and math.isfinite(row.ci_low) else "",
    }


def _failures(table: pd.DataFrame, tasks: Sequence[Task], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each method how many tasks it passes, and which it fails, how badly."""
    names = {task.name: task.title for task in tasks}
    decides = deciding(table, tasks)
    found = []
    for method, title in titles.items():
        rows = decides[(decides.method == method) & ~decides.verdict.isin([UNFIT, UNLEARNED, CONTROL])]
        failed = [
            f"{names[str(row.task)]} ({row.mean:.2f}; random {row.random:.2f}{', worse' * (row.verdict == WORSE)})"
            for row in rows[rows.verdict.isin(FAILS)].itertuples(index=False)
        ]
        partly = [
            f"{names[str(row.task)]} ({row.mean:.2f} of {row.needed:.2f})"
            for row in rows[rows.verdict == PARTLY].itertuples(index=False)
        ]
        if len(rows):
            passed = int((rows.verdict == PASSES).sum())
            found.append({"title": title, "passed": passed, "count": len(rows), "failed": failed, "partly": partly})
    return sorted(found, key=lambda one: (-one["passed"] / one["count"], one["title"]))


def _unfit(table: pd.DataFrame, titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Why methods do not fit: a row for each method and reason, with its tasks."""
    rows = table[table.verdict == UNFIT].drop_duplicates(["task", "method"])
    return [
        {"title": titles[str(method)], "error": error, "tasks": ", ".join(part.task)}
        for (method, error), part in rows.groupby(["method", "error"], sort=False)
    ]


def _accuracies(table: pd.DataFrame) -> dict[str, float]:
    return dict(table.dropna(subset=["accuracy"]).groupby("task", sort=False).accuracy.first())


def _asset(*names: str) -> Markup:
    """A file of this package, which is trusted."""
    return Markup(files("xai_compare").joinpath(*names).read_text("utf-8"))
