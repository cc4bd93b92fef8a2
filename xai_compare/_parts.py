"""What a run has of one model: a part of each table per batch of samples."""

import io
import json
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ._evaluation import Batch
from ._storage import Storage

_INTEGER, _TEXT, _REAL, _REALS = pa.int64(), pa.string(), pa.float64(), pa.list_(pa.float32())
_SAMPLE = {"model": _TEXT, "sample": _INTEGER}
_RESULT = {"error": _TEXT, "seconds": _REAL}
_MAP = {"method": _TEXT, "shape": pa.list_(_INTEGER), "map": _REALS}
_CELL = {"method": _TEXT, "metric": _TEXT}
TABLES = {
    "scores": pa.schema(_SAMPLE | {"target": _INTEGER} | _CELL | {"score": _REAL} | _RESULT),
    "explanations": pa.schema(_SAMPLE | {"name": _TEXT, "target": _INTEGER, "method": _TEXT} | _RESULT),
    "curves": pa.schema(_SAMPLE | _CELL | {"curve": _TEXT, "axis": _TEXT, "x": _REALS, "y": _REALS}),
    "small_maps": pa.schema(_SAMPLE | _MAP),
    "maps": pa.schema(_SAMPLE | _MAP),
    "skipped": pa.schema(_SAMPLE | {"name": _TEXT, "error": _TEXT}),
}
_CHECKED = {"small_maps": ["method"], "maps": ["method"]}  # what is read of large tables to see if they are whole
_DAMAGED = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)

Cells = Mapping[str, Collection[str]]
"""For methods, metrics of each."""


@dataclass(frozen=True)
class _Finished:
    """What is finished of a batch.

    Attributes:
        cells: Methods and metrics with a score, or an error, for each sample.
        failed: Those of them with an error.
        maps: Methods of which the maps of all samples are kept, or could not be made.
        readable: How many samples can be read, or may be.
    """

    cells: set[tuple[str, str]] = field(default_factory=set)
    failed: set[tuple[str, str]] = field(default_factory=set)
    maps: set[str] = field(default_factory=set)
    readable: int = 1


class Parts:
    """The parts of a model.

    A cell of a batch (a method and a metric) is finished when its scores are there, which are written last.

    Args:
        files: The files of the run.
        model: The model's name.
        suffix: What its parts' names have behind the number of their first sample.

    Attributes:
        disagreeing: The file of further pictures of the gallery, on which methods disagree.
    """

    def __init__(self, files: Storage, model: str, suffix: str) -> None:
        self._files, self._model, self._suffix = files, model, suffix
        self.disagreeing = f"gallery/disagreeing{suffix}.npz"

    def write(self, start: int, batch: Batch, cells: Cells) -> None:
        """Write these cells of a batch, in place of what the folder has of them; its scores last."""
        if batch.pictures:
            self._write_pictures(start, _joined(self._pictures_of(start), batch.pictures))
        for table in ("skipped", "curves", "small_maps", "maps", "explanations", "scores"):
            rows: Sequence[tuple[Any, ...]] = getattr(batch, table)
            if rows or table == "scores" or self._files.exists(self._part(table, start)):
                self._write_part(table, start, self._table_of(table, rows), cells)

    def begun(self) -> set[int]:
        """The first samples of the batches of which something is finished."""
        ending = f"{self._suffix}.parquet"
        names = self._files.names("scores.parquet")
        return {int(name[5:15]) for name in names if name.startswith("part-") and name[15:] == ending}

    def missing(
        self, sizes: Mapping[int, int], cells: Cells, *, retry_failed: bool, with_maps: bool = False
    ) -> dict[int, dict[str, list[str]]]:
        """The cells of each batch that are not finished, by the batch's first sample; batches without any are left out.

        Args:
            sizes: How many samples each batch has.
            cells: What is wanted.
            retry_failed: Does a cell with an error count as not finished?
            with_maps: Does a method whose maps are not kept count as not finished? If its scores are, no metric is
                left for it.
        """
        begun = self.begun()
        found = {}
        for start, size in sizes.items():
            done = self._finished(start, size) if start in begun else _Finished()
            if not done.readable:
                continue
            again = done.failed if retry_failed else set()
            left = {m: [k for k in metrics if (m, k) not in done.cells - again] for m, metrics in cells.items()}
            found[start] = {m: k for m, k in left.items() if k or (with_maps and m not in done.maps)}
        return {start: left for start, left in found.items() if left}

    def name_of(self, sample: int) -> str:
        """The name, without its ending, of files that are of this model and begin with a sample."""
        return f"part-{sample:010d}{self._suffix}"

    def _part(self, table: str, start: int) -> str:
        kind = "gallery" if table == "gallery" else f"{table}.parquet"
        return f"{kind}/{self.name_of(start)}.{'npz' if table == 'gallery' else 'parquet'}"

    def _table_of(self, table: str, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
        schema = TABLES[table]
        columns = list(zip(*((self._model, *row) for row in rows), strict=True)) or [()] * len(schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _write_part(self, table: str, start: int, rows: pa.Table, cells: Cells) -> None:
        name = self._part(table, start)
        if self._files.exists(name):
            rows = pa.concat_tables([_without(self._read_part(table, start), table, cells), rows])
        file = pa.BufferOutputStream()
        parquet.write_table(rows, file, compression="zstd")
        self._files.write(name, file.getvalue().to_pybytes())

    def _read_part(self, table: str, start: int, columns: list[str] | None = None) -> pa.Table:
        name = self._part(table, start)
        if not self._files.exists(name):
            return TABLES[table].empty_table()
        source, files = self._files.for_arrow(name)
        return parquet.read_table(source, filesystem=files, columns=columns, schema=TABLES[table], partitioning=None)

    def _finished(self, start: int, size: int) -> "_Finished":
        """What is finished of a batch.

        A part that is damaged is taken away with all others of its batch, so that they are computed again.
        """
        try:
            found = {table: self._read_part(table, start, _CHECKED.get(table)) for table in TABLES}
            self._pictures_of(start)
        except _DAMAGED as error:
            said = f"Part {start} of {self._files.where} is damaged ({error}) and is computed again."
            warnings.warn(said, stacklevel=2)
            for table in (*TABLES, "gallery"):
                self._files.remove(self._part(table, start))
            return _Finished()
        scores: pd.DataFrame = found["scores"].to_pandas()
        readable = size - len(found["skipped"])
        counts = Counter(zip(scores["method"], scores["metric"], strict=True))
        failed = scores[scores["error"].notna()]
        explanations: pd.DataFrame = found["explanations"].to_pandas()
        lost = explanations.method[explanations.error.notna()]
        maps = Counter([*found["maps"]["method"].to_pylist(), *lost])
        return _Finished(
            {cell for cell, count in counts.items() if count >= readable},
            set(zip(failed["method"], failed["metric"], strict=True)),
            {method for method, count in maps.items() if count >= readable},
            readable,
        )

    def _write_pictures(self, start: int, pictures: list[dict[str, Any]]) -> None:
        self._files.write(self._part("gallery", start), packed([{"model": self._model} | one for one in pictures]))

    def _pictures_of(self, start: int) -> list[dict[str, Any]]:
        return pictures_in(self._files, self._part("gallery", start))


def packed(pictures: list[dict[str, Any]]) -> bytes:
    """Pictures of the gallery as the bytes of an .npz file."""
    arrays = {}
    for number, picture in enumerate(pictures):
        arrays[f"{number}/image"] = picture["image"]
        arrays |= {f"{number}/{cls}/{method}": heat for (method, cls), heat in picture["maps"].items()}
    described = [{k: p[k] for k in ("model", "index", "name", "classes", "asked") if k in p} for p in pictures]
    file = io.BytesIO()
    np.savez_compressed(file, about=np.array(json.dumps(described)), **arrays)
    return file.getvalue()


def pictures_in(files: Storage, name: str) -> list[dict[str, Any]]:
    """The pictures that a file holds, none if there is no such file."""
    if not files.exists(name):
        return []
    found = []
    with np.load(io.BytesIO(files.read(name))) as file:
        for number, about in enumerate(json.loads(str(file["about"]))):
            keys = [key for key in file.files if key.startswith(f"{number}/") and key.count("/") > 1]
            maps = {}
            for key in keys:
                _, cls, method = key.split("/", 2)
                maps[method, int(cls)] = file[key]
            found.append(about | {"image": file[f"{number}/image"], "maps": maps})
    return found


def _without(rows: pa.Table, table: str, cells: Cells) -> pa.Table:
    """The rows of a part that are not written anew."""
    if table == "skipped":
        return rows[:0]
    methods = rows["method"].to_pylist()
    if "metric" in rows.column_names:
        keep = [k not in cells.get(m, ()) for m, k in zip(methods, rows["metric"].to_pylist(), strict=True)]
    else:
        keep = [method not in cells for method in methods]
    return rows.filter(pa.array(keep, pa.bool_()))


def _joined(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures with the maps of methods from before and now."""
    before = {picture["index"]: picture["maps"] for picture in old}
    return [picture | {"maps": before.get(picture["index"], {}) | picture["maps"]} for picture in new]
