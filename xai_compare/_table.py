"""A table of samples: file, label, mask, box, split."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ._cells import box_in, box_mask, is_empty, labels_in
from ._classes import classes_of
from ._pictures import Pictures, opened
from ._samples import Sample, Samples

COLUMNS = ("file", "label", "mask", "box", "split")
ENDINGS = (".csv", ".tsv", ".parquet")
_NUMBER = re.compile(r"-?\d+(\.0*)?")


class Table(Samples):
    """The pictures that a table lists.

    Labels that are all whole numbers are the numbers of classes; others are names, which `classes_of` matches.
    """

    def __init__(
        self, table: pd.DataFrame, root: Path, source: str, pictures: Pictures, labels: Sequence[str], split: str
    ) -> None:
        table = table.rename(columns=lambda name: str(name).strip().lower())
        if "file" not in table:
            raise ValueError(
                f"Expected columns {', '.join(COLUMNS)}, all but file optional, in {source}; got "
                f"{', '.join(map(str, table.columns)) or 'none'}."
            )
        self._labels = [labels_in(cell) for cell in table["label"]] if "label" in table else [[]] * len(table)
        names = {label for cell in self._labels for label in cell}
        numbered = all(_NUMBER.fullmatch(label) for label in names) and not names <= set(map(str, labels))
        self.classes = classes_of([] if numbered else sorted(names), labels)
        self._table = _rows(table, source, split)
        self._root, self._pictures, self._numbered = root, pictures, numbered
        if pictures.transform is None and any(not str(file).lower().endswith(".npy") for file in self._table["file"]):
            raise ValueError(
                "Images in files need a transform, and this model has none: let the function return "
                "(model, transform), pass transform=..., or a dataset of tensors."
            )
        self.description = f"{len(self._table)} rows of {source}" + (f", {split}" if split else "")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._table)

    def name(self, index: int) -> str:
        """The file, as the table says it."""
        return str(self._table["file"].iloc[index])

    def fingerprint(self) -> str:
        """SHA-256 of the rows, of sizes of files, and of what is made of the first and last images."""
        columns = [name for name in COLUMNS[:-1] if name in self._table]
        sizes = [path.stat().st_size if path.is_file() else 0 for path in map(self._path, self._table["file"])]
        rows = self._table[columns].astype(str).assign(size=sizes).to_csv(index=False)
        return self.digest(rows, (0, len(self) - 1))

    def read(self, index: int) -> Sample:
        """The image, preprocessed, its classes, and its mask or box."""
        row = self._table.iloc[index]
        picture = opened(self._path(row["file"]))
        image = self._pictures.ready(picture)
        labels = self._labels[self._table.index[index]]
        numbers = [int(float(label)) if self._numbered else self.classes.numbers.get(label) for label in labels]
        known = tuple(dict.fromkeys(number for number in numbers if number is not None))
        mask = self._mask(row, self._pictures.sides(picture))
        return Sample(
            index, self.name(index), image, known, None if mask is None else self._pictures.mask(mask, picture, image)
        )

    def _path(self, file: Any) -> Path:
        return self._root / str(file)

    def _mask(self, row: pd.Series, size: tuple[int, ...]) -> Any:
        if not is_empty(row.get("mask")):
            picture = opened(self._path(row["mask"]))
            return picture.convert("L") if isinstance(picture, Image.Image) else picture
        if "box" not in row or is_empty(row["box"]):
            return None
        if len(size) != 2:
            raise ValueError(f"Expected boxes of images only, got one of an array of {len(size)} axes")
        return box_mask(box_in(row["box"]), *size)


def read_table(path: Path, pictures: Pictures, labels: Sequence[str], split: str) -> Table:
    """The samples that a CSV or Parquet file lists, paths relative to it.

    Raises:
        ValueError: if it cannot be read, or lists none.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:  # texts as they are: a class may be called NA or 007
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            table = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig"
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return Table(table, path.parent, str(path), pictures, labels, split)


def _rows(table: pd.DataFrame, source: str, split: str) -> pd.DataFrame:
    """The rows of a split; each keeps its place in the table as index."""
    table = table.reset_index(drop=True)
    if split:
        found = table["split"].astype(str).str.strip() if "split" in table else pd.Series([], dtype=str)
        table = table[found == split] if split in set(found) else table[:0]
        if table.empty:
            known = ", ".join(sorted(set(found))) or "no column split"
            raise ValueError(f"{source} has no rows of the split {split!r}; it has {known}.")
    if table.empty:
        raise ValueError(f"Expected samples in {source}, got no row.")
    empty = [int(place) for place in table.index[table["file"].map(is_empty)]]
    if empty:
        raise ValueError(f"Expected a file in each row of {source}, got none in row(s) {empty[:10]}.")
    return table
