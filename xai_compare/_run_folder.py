"""A run's folder: which run it holds, and what is finished."""

import contextlib
import json
import os
import platform
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from ._evaluation import Batch
from ._names import fingerprint

_INTEGER, _TEXT, _REAL, _REALS = pa.int64(), pa.string(), pa.float64(), pa.list_(pa.float32())
_SAMPLE = {"sample": _INTEGER, "name": _TEXT}
_RESULT = {"error": _TEXT, "seconds": _REAL}
_CELL = {"method": _TEXT, "metric": _TEXT}
TABLES = {
    "scores": pa.schema({"sample": _INTEGER, "target": _INTEGER} | _CELL | {"score": _REAL} | _RESULT),
    "explanations": pa.schema(_SAMPLE | {"target": _INTEGER, "method": _TEXT} | _RESULT),
    "curves": pa.schema({"sample": _INTEGER} | _CELL | {"curve": _TEXT, "axis": _TEXT, "x": _REALS, "y": _REALS}),
    "skipped": pa.schema(_SAMPLE | {"error": _TEXT}),
}
_GROWING = ("methods", "metrics")
_PROBE = 2**20  # bytes


class RunningError(ValueError):
    """Another process works on the run."""


Cells = Mapping[str, Collection[str]]
"""For methods, metrics of each."""


class RunFolder:
    """What a run writes: a part of each table per batch, each written atomically.

    A cell of a batch (a method and a metric) is finished when its scores are there, which are written last. What is
    added later, as by another method, is written into the same parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Inside, no other process works on the folder; the lock ends with the process, also if it is killed.

        Raises:
            RunningError: if another one does.
            OSError: if the folder cannot be written.
        """
        made = not self.path.exists()
        self._check_writable()
        lock, holder = FileLock(self.path / ".run.lock"), self.path / ".holder.json.part"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            said = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise RunningError(
                f"{self.path} is being written by {said}. Wait until it is done, or choose another folder with --out."
            ) from None
        try:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            about = f"process {os.getpid()} on {platform.node()} since {now}" + f" ({command})" * bool(command)
            holder.write_text(about, encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()
            if made and not (self.path / "run.json").exists():  # the run was refused: nothing is left of it
                Path(lock.lock_file).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def open(self, identity: Mapping[str, Any], expected_bytes: int) -> dict[str, Any]:
        """Create the folder, or resume the run in it.

        Args:
            identity: What must be the same for numbers to belong to one run.
            expected_bytes: About how much will be written.

        Returns:
            What `run.json` holds so far.

        Raises:
            ValueError: if another run is in the folder, with what differs, or another process works on it.
            OSError: if it cannot be written, or the disk has too little space.
        """
        identity = json.loads(json.dumps(identity, default=fingerprint))
        file = self.path / "run.json"
        if file.exists():
            facts = self.facts()
            identity = _grown(facts.get("identity", {}), identity)
            differing = _differences(facts.get("identity", {}), identity, growing=True)
            if differing:
                raise ValueError(
                    f"{self.path} holds another run: {'; '.join(differing)}. Choose another folder with --out, or "
                    "repeat the command of that run: " + facts.get("command", "")
                )
        elif any(p.is_file() and p.suffix not in (".part", ".lock") for p in self.path.rglob("*")):
            raise ValueError(f"{self.path} is not empty and holds no run. Choose another folder with --out.")
        else:
            facts = {}
        self._check_room(expected_bytes)
        for name in (*(f"{table}.parquet" for table in TABLES), "gallery"):
            (self.path / name).mkdir(exist_ok=True)
        for left in self.path.rglob(".*.part"):  # by a process that was killed while it wrote
            if not left.name.startswith(".holder"):
                left.unlink(missing_ok=True)
        return facts | {"identity": identity}

    def facts(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            found: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:  # not UTF-8, or no JSON
            raise ValueError(
                f"{self.path / 'run.json'} is damaged ({error}), so it is not known which run the folder holds. Choose "
                "another folder with --out."
            ) from error
        return found

    def _check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}.part"
            try:
                with probe.open("wb") as file:
                    file.write(bytes(_PROBE))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                f"Nothing can be written to {self.path}: {error}. Choose another folder with --out."
            ) from error

    def _check_room(self, expected_bytes: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < expected_bytes:
            raise OSError(
                f"The run will write about {expected_bytes / 1e6:.0f} MB, but the disk of {self.path} has "
                f"{free / 1e6:.0f} MB left. Make room, or choose another folder with --out."
            )

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        self.write_text("run.json", json.dumps(facts, indent=2, default=str) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.path / name)

    def write(self, start: int, batch: Batch, cells: Cells) -> None:
        """Write these cells of a batch, in place of what the folder has of them; its scores last."""
        if batch.pictures:
            self._write_pictures(start, _joined(self._pictures_of(start), batch.pictures))
        for table in ("skipped", "curves", "explanations", "scores"):
            rows: Sequence[tuple[Any, ...]] = getattr(batch, table)
            file = self._part(table, start)
            if file.exists() or rows or table == "scores":
                self._write_part(table, start, _table_of(table, rows), cells)

    def _part(self, table: str, start: int) -> Path:
        return self.path / f"{table}.parquet" / f"part-{start:010d}.parquet"

    def _write_part(self, table: str, start: int, rows: pa.Table, cells: Cells) -> None:
        file = self._part(table, start)
        if file.exists():
            rows = pa.concat_tables([_without(parquet.read_table(file, schema=TABLES[table]), table, cells), rows])
        part = file.with_name(f".{start:010d}-{os.getpid()}.part")
        parquet.write_table(rows, part)
        part.replace(file)

    def _write_pictures(self, start: int, pictures: list[dict[str, Any]]) -> None:
        arrays = {}
        for number, picture in enumerate(pictures):
            arrays[f"{number}/image"] = picture["image"]
            arrays |= {f"{number}/{cls}/{method}": heat for (method, cls), heat in picture["maps"].items()}
        described = [{k: p[k] for k in ("index", "name", "classes")} for p in pictures]
        part = self.path / "gallery" / f".{start:010d}-{os.getpid()}.part"
        with part.open("wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(described)), **arrays)
        part.replace(self.path / "gallery" / f"part-{start:010d}.npz")

    def begun(self) -> set[int]:
        """The first samples of the batches of which something is finished."""
        with os.scandir(self.path / "scores.parquet") as files:
            return {int(f.name[5:15]) for f in files if f.name.startswith("part-")}

    def missing(self, sizes: Mapping[int, int], cells: Cells, *, retry_failed: bool) -> dict[int, dict[str, list[str]]]:
        """The cells of each batch that are not finished, by the batch's first sample; batches without any are left out.

        Args:
            sizes: How many samples each batch has.
            cells: What is wanted.
            retry_failed: Does a cell with an error count as not finished?
        """
        begun = self.begun()
        found = {}
        for start, size in sizes.items():
            done = self._done(start, size, retry_failed) if start in begun else set()
            left = {m: [k for k in metrics if done is not None and (m, k) not in done] for m, metrics in cells.items()}
            found[start] = {method: metrics for method, metrics in left.items() if metrics}
        return {start: left for start, left in found.items() if left}

    def _done(self, start: int, size: int, retry_failed: bool) -> set[tuple[str, str]] | None:
        """The finished cells of a batch; None: all, as no sample can be read.

        A part that is damaged is taken away with all others of its batch, so that they are computed again.
        """
        try:
            scores, skipped = (self._read_part(table, start) for table in ("scores", "skipped"))
            for table in ("explanations", "curves"):
                self._read_part(table, start)
            self._pictures_of(start)
        except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            warnings.warn(f"Part {start} of {self.path} is damaged ({error}) and is computed again.", stacklevel=2)
            for table in TABLES:
                self._part(table, start).unlink(missing_ok=True)
            (self.path / "gallery" / f"part-{start:010d}.npz").unlink(missing_ok=True)
            return set()
        if len(skipped) >= size:
            return None
        counts = Counter(zip(scores["method"], scores["metric"], strict=True))
        failed = scores[scores["error"].notna()] if retry_failed else scores[:0]
        again = set(zip(failed["method"], failed["metric"], strict=True))
        return {cell for cell, count in counts.items() if count >= size - len(skipped) and cell not in again}

    def _read_part(self, table: str, start: int) -> pd.DataFrame:
        file = self._part(table, start)
        found: pd.DataFrame = (parquet.read_table(file) if file.exists() else TABLES[table].empty_table()).to_pandas()
        return found

    def table(self, name: str) -> pd.DataFrame:
        """All rows written so far, samples in order."""
        folder = self.path / f"{name}.parquet"
        if not any(folder.glob("part-*.parquet")):
            return pd.DataFrame(TABLES[name].empty_table().to_pandas())
        found: pd.DataFrame = pd.read_parquet(folder)
        return found

    def pictures(self) -> list[dict[str, Any]]:
        """What was kept for the gallery: index, name, classes, image and maps by method and class."""
        found = []
        for path in sorted((self.path / "gallery").glob("part-*.npz")):
            found += self._pictures_of(int(path.stem[5:]))
        return found

    def _pictures_of(self, start: int) -> list[dict[str, Any]]:
        path = self.path / "gallery" / f"part-{start:010d}.npz"
        if not path.exists():
            return []
        found = []
        with np.load(path) as file:
            for number, about in enumerate(json.loads(str(file["about"]))):
                keys = [key for key in file.files if key.startswith(f"{number}/") and key.count("/") > 1]
                maps = {}
                for key in keys:
                    _, cls, method = key.split("/", 2)
                    maps[method, int(cls)] = file[key]
                found.append(about | {"image": file[f"{number}/image"], "maps": maps})
        return found


def _table_of(table: str, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    schema = TABLES[table]
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


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


def _grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run with what is added to it: methods and metrics, of which all are kept."""
    return {**new, **{part: old.get(part, {}) | new[part] for part in _GROWING if part in new}}


def _differences(old: Any, new: Any, path: str = "", *, growing: bool = False) -> list[str]:
    """What differs between two identities; of methods and metrics that are added nothing, if the run is growing."""
    if isinstance(old, dict) and isinstance(new, dict):
        added = growing and path in _GROWING
        names = sorted(old if added else {*old, *new})
        parts = ((old.get(n), new.get(n), f"{path}.{n}".strip(".")) for n in names)
        return [d for one, other, where in parts for d in _differences(one, other, where, growing=growing)]
    return [] if old == new else [f"{path} was {_short(old)} and is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:28] + " ... " + text[-28:]
