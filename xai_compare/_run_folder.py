"""A run's folder: which run it holds, and what is finished."""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
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
_PROBE = 2**20  # bytes


class RunFolder:
    """What a run writes: a part of each table per batch, each written atomically.

    A batch is finished when its part of the scores is there, which is written last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, identity: Mapping[str, Any], expected_bytes: int) -> dict[str, Any]:
        """Create the folder, or resume the run in it.

        Args:
            identity: What must be the same for numbers to belong to one run.
            expected_bytes: About how much will be written.

        Returns:
            What `run.json` holds so far.

        Raises:
            ValueError: if another run is in the folder; the message says what differs.
            OSError: if it cannot be written, or the disk has too little space.
        """
        identity = json.loads(json.dumps(identity, default=fingerprint))
        file = self.path / "run.json"
        if file.exists():
            facts: dict[str, Any] = json.loads(file.read_text())
            differing = _differences(facts.get("identity", {}), identity)
            if differing:
                raise ValueError(
                    f"{self.path} holds another run: {'; '.join(differing)}. Choose another folder with --out, or "
                    "repeat the command of that run: " + facts.get("command", "")
                )
        elif self.path.exists() and any(p.is_file() and p.suffix != ".part" for p in self.path.rglob("*")):
            raise ValueError(f"{self.path} is not empty and holds no run. Choose another folder with --out.")
        else:
            facts = {}
        self._check_writable(expected_bytes)
        for name in (*(f"{table}.parquet" for table in TABLES), "gallery"):
            (self.path / name).mkdir(exist_ok=True)
        for left in self.path.rglob(".*.part"):  # by a process that was killed while it wrote
            with contextlib.suppress(FileNotFoundError):
                left.unlink()
        return facts | {"identity": identity}

    def _check_writable(self, expected_bytes: int) -> None:
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

    def write(self, start: int, batch: Batch) -> None:
        """Write a batch; its scores last."""
        if batch.pictures:
            self._write_pictures(start, batch.pictures)
        for table in ("skipped", "curves", "explanations", "scores"):
            rows: Sequence[tuple[Any, ...]] = getattr(batch, table)
            if rows or table == "scores":
                self._write_part(table, start, rows)

    def _write_part(self, table: str, start: int, rows: Sequence[tuple[Any, ...]]) -> None:
        schema = TABLES[table]
        columns = list(zip(*rows, strict=True)) or [()] * len(schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        folder = self.path / f"{table}.parquet"
        part = folder / f".{start:010d}-{os.getpid()}.part"
        parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), part)
        part.replace(folder / f"part-{start:010d}.parquet")

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

    def finished(self) -> set[int]:
        """The first samples of the batches that are finished."""
        with os.scandir(self.path / "scores.parquet") as files:
            return {int(f.name[5:15]) for f in files if f.name.startswith("part-")}

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
            with np.load(path) as file:
                for number, about in enumerate(json.loads(str(file["about"]))):
                    keys = [key for key in file.files if key.startswith(f"{number}/") and key.count("/") > 1]
                    maps = {}
                    for key in keys:
                        _, cls, method = key.split("/", 2)
                        maps[method, int(cls)] = file[key]
                    found.append(about | {"image": file[f"{number}/image"], "maps": maps})
        return found


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [d for name in names for d in _differences(old.get(name), new.get(name), f"{path}.{name}".strip("."))]
    return [] if old == new else [f"{path} was {_short(old)} and is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:28] + " ... " + text[-28:]
