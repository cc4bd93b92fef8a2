"""How far methods agree, as a matrix and tables of the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ._report_table import Table, between, mean, number, to_float

SHOWN = 10  # samples with the lowest agreement


@dataclass(frozen=True)
class Matrix:
    """Agreement of all pairs of methods.

    Attributes:
        words: What it says.
        rows: By method the correlation with each method; NaN where there is none.
        pairs: All pairs, with intervals.
        lowest: Of the images with the lowest agreement: name, agreement, and the place in the gallery, if it is there.
        among: How many images there are.
    """

    words: str
    rows: dict[str, list[float]]
    pairs: Table
    lowest: list[tuple[str, str, int | None]]
    among: int


def matrix(
    by_pair: pd.DataFrame | None,
    by_sample: pd.DataFrame | None,
    methods: Mapping[str, str],
    gallery: Sequence[int | None],
) -> Matrix | None:
    """What the report shows of agreement; None where no pair of methods has any.

    Args:
        by_pair: As `agreement` returns it, or None.
        by_sample: As `agreement` returns it, with the samples' `name`s, or None.
        methods: The methods' titles.
        gallery: The samples that the gallery shows.
    """
    known = [] if by_pair is None else by_pair[by_pair["mean"].notna()].to_dict("records")
    if not known:
        return None
    found = {(row["method_a"], row["method_b"]): to_float(row["mean"]) for row in known}
    found |= {(b, a): value for (a, b), value in found.items()}
    present = [method for method in methods if any(method in pair for pair in found)]
    rows = {a: [found.get((a, b), math.nan) for b in present] for a in present}
    titled = [(methods.get(row["method_a"], ""), methods.get(row["method_b"], ""), row) for row in known]
    shown = [
        (a, b, row["n"], number(row["mean"], 2), between(*(number(row[k], 2) for k in ("ci_low", "ci_high"))))
        for a, b, row in titled
    ]
    pairs = Table("agreement-pairs", "", ("Method a", "Method b", "Images", "Mean", "95 % interval"), shown)
    ordered = sorted(titled, key=lambda one: float(one[2]["mean"]))
    words = f"Mean of all pairs: {number(mean(row['mean'] for row in known), 2)}."
    if len(known) > 1:
        low, high = (f"{a} and {b} ({number(row['mean'], 2)})" for a, b, row in (ordered[0], ordered[-1]))
        words += f" Most alike: {high}. Least alike: {low}."
    samples = pd.DataFrame() if by_sample is None else by_sample.dropna(subset=["agreement"])
    return Matrix(words, rows, pairs, _lowest(samples, gallery), len(samples))


def _lowest(samples: pd.DataFrame, gallery: Sequence[int | None]) -> list[tuple[str, str, int | None]]:
    if samples.empty:
        return []
    places = {sample: at for at, sample in enumerate(gallery) if sample is not None}
    first = samples.sort_values("agreement", kind="stable").head(SHOWN).to_dict("records")
    return [(str(r["name"]), number(r["agreement"], 2), places.get(int(r["sample"]))) for r in first]
