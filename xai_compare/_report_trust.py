"""Which maps can be trusted, as tables of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import pandas as pd

from captum_ext.trust import Verdict

from ._report_table import Records, Table, counted, number

_NUMBERS = {
    "agreement": "Exact effects",
    "stability": "Other seeds",
    "steps": "Twice the steps",
    "head": "Random head",
    "half": "Upper half random",
    "all": "All random",
    "outlier_relevance": "On outliers",
    "prefix_relevance": "On other tokens",
    "completeness": "Missing",
}


@dataclass(frozen=True)
class Trusted:
    """What `check` found.

    Attributes:
        words: In short.
        methods: How many maps of each method pass, and the medians of their numbers.
        maps: For each map: image, its place in the gallery or None, method, verdict, and what speaks against it.
        notes: What could not be measured.
    """

    words: str
    methods: Table
    maps: list[tuple[str, int | None, str, str, str]]
    notes: list[str]


def trusted(found: pd.DataFrame | None, methods: Mapping[str, str], gallery: Sequence[int | None]) -> Trusted | None:
    """What the report shows of maps that were checked; None where none was.

    Args:
        found: As `Comparison.trust` returns it, or None.
        methods: The methods' titles.
        gallery: The samples that the gallery shows.
    """
    if found is None or found.empty:
        return None
    known = [name for name in _NUMBERS if found[name].notna().any()]
    heads = ("Method", "Pass", "Doubtful", "Fail", *(_NUMBERS[name] for name in known))
    rows = [
        (methods.get(str(method), str(method)), *_counts(rows), *(number(rows[name].median(), 2) for name in known))
        for method, rows in found.groupby("method", sort=False)
    ]
    places = {sample: at for at, sample in enumerate(gallery) if sample is not None}
    records: Records = found.to_dict("records")
    maps = [
        (
            str(row["name"]),
            places.get(int(row["sample"])),
            methods.get(row["method"], row["method"]),
            row["verdict"] or "not checked",
            row["reasons"] or row["error"],
        )
        for row in records
    ]
    notes = [note for note in dict.fromkeys(found.notes) if note]
    return Trusted(_words(*_counts(found)), Table("trust", "", heads, rows, numeric=heads[1:]), maps, notes)


def _counts(found: pd.DataFrame) -> list[int]:
    return [int((found.verdict == verdict).sum()) for verdict in get_args(Verdict)]


def _words(passing: int, doubtful: int, failing: int) -> str:
    checked = counted(passing + doubtful + failing, "map")
    return f"{checked} checked: {passing} passing, {doubtful} doubtful, {failing} failing."
