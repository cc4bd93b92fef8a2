"""The measurements as rows of a csv file, kept as they come."""

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

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
    with path.open(newline="") as file:
        return [_row(record) for record in csv.DictReader(file)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at once, so that an interruption leaves the old one or the new one."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in asdict(row).items()} for row in rows)
    os.replace(part, path)


def _rounded(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def _row(record: dict[str, str]) -> Row:
    kinds = {"batch": int, "steps": int, "repeats": int, "model": str, "method": str}
    return Row(**{name: kinds.get(name, float)(value) for name, value in record.items()})
