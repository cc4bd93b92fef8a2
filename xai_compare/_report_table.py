"""What the tables of the report hold."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._statistics import SIGNIFICANT

Records = list[dict[Any, Any]]

_PAIR = ("method_a", "method_b")
_HINTS = {"higher": "\u2191 higher is better", "lower": "\u2193 lower is better"}


@dataclass(frozen=True)
class Cell:
    """What is shown, and under it; `value` is what it is sorted by, `mark` is "best", "close" or nothing."""

    value: float
    shown: str
    notes: Sequence[str] = ()
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table of scores, with a cell for each method; `metric` is what it shows, if it is one."""

    title: str
    hint: str
    lowest_first: bool
    cells: dict[str, Cell]
    metric: str = ""


@dataclass(frozen=True)
class Table:
    """Any other table; the first cell of a row is its head."""

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: Sequence[str] = ()


def score_columns(
    run: Mapping[str, Any], scores: Records, pairs: Records, methods: dict[str, str], metrics: dict[str, str]
) -> list[Column]:
    """The table of all scores; the best of each column is marked, and what may be as good."""
    return [
        *_known(_rank_column(scores, methods)),
        *(metric_column(run, scores, pairs, methods, metric, title) for metric, title in metrics.items()),
        *_known(_cost_column(scores, methods, "explain_seconds", "Seconds")),
        *_known(_cost_column(scores, methods, "explain_forwards", "Forward passes")),
    ]


def _known(column: Column) -> list[Column]:
    """The column, if it has a value."""
    return [column] if any(math.isfinite(cell.value) for cell in column.cells.values()) else []


def metric_column(
    run: Mapping[str, Any], scores: Records, pairs: Records, methods: Iterable[str], metric: str, title: str
) -> Column:
    """A metric's means, with intervals; the best one is marked, and what may be as good."""
    found = {row["method"]: row for row in scores if row["metric"] == metric}
    rows = {method: found.get(method, {}) for method in methods}
    known = [entry(run, "metrics", metric).get("direction"), *(row.get("direction") for row in rows.values())]
    direction = next((one for one in known if one in _HINTS), "")
    means = {method: to_float(row.get("mean")) for method, row in rows.items()}
    marks = _marks(means, direction, [row for row in pairs if row["metric"] == metric])
    places = decimals(means.values())
    most = max((to_float(row.get("n")) for row in rows.values()), default=0)
    cells = {
        method: Cell(means[method], number(means[method], places), _notes(row, places, most), marks.get(method, ""))
        for method, row in rows.items()
    }
    return Column(title, _HINTS.get(direction, "neither is better"), direction == "lower", cells, metric)


def _notes(row: dict[Any, Any], places: int, most: float) -> list[str]:
    notes = []
    low, high = to_float(row.get("ci_low")), to_float(row.get("ci_high"))
    if math.isfinite(low) and math.isfinite(high):
        notes.append(between(number(low, places), number(high, places)))
    if to_float(row.get("failed")) > 0:
        notes.append(f"{row['failed']} failed")
    elif to_float(row.get("n")) < most:
        notes.append(f"n = {row['n']}")
    return notes


def _marks(means: dict[str, float], direction: str, pairs: Records) -> dict[str, str]:
    """By method: whether it is best, or no test tells it from the best."""
    best = _best(means, direction)
    tied = [{row["method_a"], row["method_b"]} for row in pairs if to_float(row.get("p_holm")) >= SIGNIFICANT]
    close = {method for pair in tied if pair & best for method in pair}
    return dict.fromkeys(close, "close") | dict.fromkeys(best, "best")


def _best(values: Mapping[str, float], direction: str = "lower") -> set[str]:
    """The best of several; of one, or without a direction, none."""
    finite = {method: value for method, value in values.items() if math.isfinite(value)}
    if len(finite) < 2 or direction not in _HINTS:
        return set()
    top = max(finite.values()) if direction == "higher" else min(finite.values())
    return {method for method, value in finite.items() if value == top}


def _rank_column(scores: Records, methods: Iterable[str]) -> Column:
    ranks = {method: _finite(scores, method, "mean_rank") for method in methods}
    most = max(map(len, ranks.values()), default=0)
    best = _best({method: mean(values) for method, values in ranks.items() if len(values) == most})
    cells = {}
    for method, values in ranks.items():
        notes = [f"{len(values)} of {most} metrics"] if 0 < len(values) < most else []
        cells[method] = Cell(mean(values), number(mean(values), 2), notes, "best" if method in best else "")
    return Column("Mean rank", f"over {counted(most, 'metric')}, \u2193\u00a01\u00a0is best", True, cells)


def _cost_column(scores: Records, methods: Iterable[str], name: str, title: str) -> Column:
    costs = {method: mean(_finite(scores, method, name)) for method in methods}
    best = _best(costs)
    cells = {
        method: Cell(cost, number(cost, decimals([cost])), (), "best" if method in best else "")
        for method, cost in costs.items()
    }
    return Column(title, f"for one map, {_HINTS['lower']}", True, cells)


def _finite(scores: Records, method: str, name: str) -> list[float]:
    values = [to_float(row.get(name)) for row in scores if row["method"] == method]
    return [value for value in values if math.isfinite(value)]


def test_table(pairs: Records, methods: dict[str, str], metrics: dict[str, str]) -> Table:
    """All paired tests."""
    heads = ("Metric", "Method a", "Method b", "n", "Median of a \u2212 b", "Effect", "95 % interval", "p", "p (Holm)")
    rows = []
    for row in pairs:
        same = [to_float(one.get("median_difference")) for one in pairs if one["metric"] == row["metric"]]
        names = metrics.get(row["metric"], row["metric"]), *(methods.get(row[m], row[m]) for m in _PAIR)
        difference = number(to_float(row.get("median_difference")), decimals(same))
        effects = [number(to_float(row.get(name)), 2) for name in ("effect", "effect_low", "effect_high")]
        shown = effects[0], between(*effects[1:])
        rows.append((*names, row.get("n", ""), difference, *shown, p_value(row.get("p")), p_value(row.get("p_holm"))))
    return Table("pairs", "Paired Wilcoxon tests", heads, rows, heads[3:])


def p_value(value: Any) -> str:
    """A p value with three digits."""
    p = to_float(value)
    return "< 0.001" if p < 0.001 else number(p, 3)


def entry(run: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """What the run says about a metric or method."""
    found: Mapping[str, Any] = (run.get(kind) or {}).get(name) or {}
    return found


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def to_float(value: Any) -> float:
    """The number; NaN for None."""
    return math.nan if value is None else float(value)


def decimals(values: Iterable[float]) -> int:
    """How many show three digits of the largest value."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2


def counted(count: int, what: str) -> str:
    """For example "2 images"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def between(low: str, high: str) -> str:
    """An interval; a dash for what is none."""
    return low if low == high == "\u2013" else f"{low} to {high}"


def number(value: float, places: int) -> str:
    """The number with a proper minus sign; a dash for what is none."""
    if not math.isfinite(value):
        return "\u2013"
    shown = f"{value:.{places}f}"
    return shown.replace("-", "" if float(shown) == 0 else "\u2212")
