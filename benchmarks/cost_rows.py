"""The measurements as rows of a csv file, kept as they come."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Row:
    """One method in one setting.

    Attributes:
        model: As it is called in tables.
        batch: Images explained at once.
        steps: Steps or samples of the methods that have them.
        method: Its name.
        ratio: Median time in plain forward passes without gradients.
        low: Lower quartile.
        high: Upper quartile.
        memory: Peak memory in multiples of a plain forward pass.
        seconds_of_forward: Median of the plain forward pass.
        repeats: How often the method was timed.
    """

    model: str
    batch: int
    steps: int
    method: str
    ratio: float
    low: float
    high: float
    memory: float
    seconds_of_forward: float
    repeats: int

    @property
    def key(self) -> Key:
        """What was measured."""
        return self.model, self.batch, self.steps, self.method


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order; none if there is no file."""
    if not path.exists():
        return []
    return [Row(*values) for values in pd.read_csv(path).itertuples(index=False)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at once, so that an interruption leaves the old one or the new one."""
    part = path.with_suffix(".part")
    table = pd.DataFrame(map(asdict, rows))
    table.to_csv(part, index=False, float_format="%.5g", na_rep="nan", lineterminator="\n")
    part.replace(path)
