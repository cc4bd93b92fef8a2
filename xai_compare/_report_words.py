"""What the table of scores says, in words: which method is best in each metric, and whether tests say so."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ._report_table import Column, Records, to_float
from ._statistics import SIGNIFICANT

_NAMED = 3  # methods, the others are counted


@dataclass(frozen=True)
class Finding:
    """Of one metric: its title, what is said of it, and the method that is significantly better than all others."""

    title: str
    text: str
    winner: str = ""


def findings(columns: Sequence[Column], pairs: Records, methods: Mapping[str, str]) -> list[Finding]:
    """What is said of each metric in which a method can be best, from the marks of the table and its tests."""
    if len(methods) < 2:
        return []
    metrics = [column for column in columns if column.metric and column.hint[0] in "\u2191\u2193"]
    return [_finding(column, [row for row in pairs if row["metric"] == column.metric], methods) for column in metrics]


def in_short(found: Sequence[Finding]) -> str:
    """How often each method is significantly better than all others."""
    won = [one.winner for one in found if one.winner]
    parts = [f"{name} in {won.count(name)}" for name in dict.fromkeys(sorted(won, key=won.count, reverse=True))]
    parts += [f"no method in {len(found) - len(won)}"] * (len(won) < len(found))
    return f"Significantly better than all others, of {len(found)} metrics: {', '.join(parts)}."


def too_few(pairs: Records) -> str:
    """What is said if there are so few images that no test of any metric can be significant; else nothing.

    Of n pairs without ties the smallest p of the signed-rank test is 2 / 2^n, and Holm multiplies it by the number of
    tests.
    """
    tested = [row for row in pairs if to_float(row.get("n")) > 0]
    counts = Counter(row["metric"] for row in tested)
    most = {metric: max(int(row["n"]) for row in tested if row["metric"] == metric) for metric in counts}
    if not counts or any(counts[metric] * 2.0 ** (1 - most[metric]) < SIGNIFICANT for metric in counts):
        return ""
    tests = min(counts.values())
    needed = next(n for n in range(1, 99) if tests * 2.0 ** (1 - n) < SIGNIFICANT)
    return (
        f"With {max(most.values())} image{'s' * (max(most.values()) != 1)} no test can give p < {SIGNIFICANT} here, "
        f"whatever the scores are: {tests} pair{'s' * (tests != 1)} of methods need at least {needed} images."
    )


def _finding(column: Column, pairs: Records, methods: Mapping[str, str]) -> Finding:
    scored = [method for method, cell in column.cells.items() if math.isfinite(cell.value)]
    if len(scored) < 2:
        return Finding(column.title, f"only {methods[scored[0]]} has scores." if scored else "no method has a score.")
    best = [method for method in scored if column.cells[method].mark == "best"]
    close = [methods[method] for method in scored if column.cells[method].mark == "close"]
    others = [method for method in scored if not column.cells[method].mark]
    verdicts = {method: _verdict(column, pairs, best[0], method) for method in others}
    untested, contrary = ([methods[m] for m in others if verdicts[m] == kind] for kind in ("untested", "contrary"))
    name = _listed([methods[method] for method in best])
    if len(best) == 1 and not (close or untested or contrary):
        rest = "all others" if len(others) > 1 else methods[others[0]]
        return Finding(column.title, f"{name} is significantly better than {rest}.", name)
    first = f"{name} {'has' if len(best) == 1 else 'share'} the best mean"
    if close and not (untested or contrary):
        first = f"no method is significantly better than all others; {first}"
    said = [f", not significantly different from {_listed(close)}"] if close else []
    said += [f"; sample by sample {_listed(contrary)} scored significantly better"] if contrary else []
    said += [f"; no test compares it with {_listed(untested)}"] if untested else []
    return Finding(column.title, first + "".join(said) + ".")


def _verdict(column: Column, pairs: Records, best: str, other: str) -> str:
    """Whether the test of a method with the best mean says that it is "worse", or the "contrary", or is missing.

    Means and tests can contradict each other, as tests are about ranks: a few very low scores change a mean.
    """
    row = next((row for row in pairs if {row["method_a"], row["method_b"]} == {best, other}), None)
    if row is None or not to_float(row.get("p_holm")) < SIGNIFICANT:
        return "untested"
    sign = (1 if row["method_a"] == best else -1) * (-1 if column.lowest_first else 1)
    effects = [to_float(row.get(name)) for name in ("effect", "median_difference")]
    effect = next((one for one in effects if math.isfinite(one)), math.nan)
    return "contrary" if sign * effect < 0 else "worse"


def _listed(names: Sequence[str]) -> str:
    """Names with commas and "and"; of many the first, and how many more."""
    if len(names) > _NAMED + 1:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} others"]
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])
