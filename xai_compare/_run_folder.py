"""A run's folder: which run it holds, who works on it, and what is finished."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ._fingerprint import fingerprint
from ._lock import locked
from ._parts import TABLES, Parts, pictures_in
from ._storage import PART, Storage

CHECKED = "trust.csv"  # what `check` says of maps
_TEXT = (
    *("model", "model_a", "model_b", "metric", "direction", "method", "method_a", "method_b", "name"),
    *("verdict", "reasons", "notes", "error"),
)
# Columns of names and words, which stay text: a method may be called "1" or "null".
_NAMES: dict[Hashable, Any] = dict.fromkeys(_TEXT, str)
_GROWING = ("models", "methods", "metrics")
_PROBE = 2**20  # bytes


class RunFolder:
    """What a run writes: `run.json`, results, and for each model a part of each table per batch.

    What is added later, as by another method, is written into the same parts.

    Args:
        where: The folder: a path, or a URL of a file system that fsspec knows.

    Attributes:
        files: The files below it.
        models: The names of the run's models, once it is open.
    """

    def __init__(self, where: str | Path) -> None:
        self.files = Storage(where)
        self.models: list[str] = []

    @contextlib.contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Inside, no other command works on the folder.

        Raises:
            RunningError: if another one does.
            OSError: if the folder cannot be written.
        """
        folder = self.files.local
        made = folder is not None and not folder.exists()
        self._check_writable()
        try:
            with locked(self.files, command):
                yield
        finally:
            if folder is not None and made and not (folder / "run.json").exists():  # the run was refused
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def open(self, identity: Mapping[str, Any], expected_bytes: int) -> dict[str, Any]:
        """Create the folder, or resume the run in it.

        Args:
            identity: What must be the same for numbers to belong to one run.
            expected_bytes: About how much will be written.

        Returns:
            What `run.json` holds so far.

        Raises:
            ValueError: if another run is in the folder, with what differs.
            OSError: if it cannot be written, or the disk has too little space.
        """
        identity = json.loads(json.dumps(identity, default=fingerprint))
        facts = {}
        if self.files.exists("run.json"):
            facts = self.facts()
            identity = _grown(facts.get("identity", {}), identity)
            differing = _differences(facts.get("identity", {}), identity, growing=True)
            if differing:
                raise ValueError(self._another_run(facts, differing))
        elif any(not name.endswith((PART, ".lock")) for name in self.files.all_names()):
            raise ValueError(f"{self.files.where} is not empty and holds no run. Choose another folder with --out.")
        self.models = list(identity.get("models", ()))
        if self.files.local is not None:
            self._make_room(self.files.local, expected_bytes)
        return facts | {"identity": identity}

    def batch_size(self) -> int | None:
        """The batch size of the run in the folder; None if there is none."""
        begun = self.facts() if self.files.exists("run.json") else {}
        found: int | None = begun.get("identity", {}).get("settings", {}).get("batch_size")
        return found

    def of(self, model: str) -> Parts:
        """The parts of one model; those of the run's first one have no model in their names."""
        return Parts(self.files, model, "" if model == self.models[0] else f"-{model}")

    def facts(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.files.read("run.json").decode())
        except ValueError as error:  # not UTF-8, or no JSON
            raise ValueError(
                f"{self.files.place('run.json')} is damaged ({error}), so it is not known which run the folder holds. "
                "Choose another folder with --out."
            ) from error
        return found

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        self.files.write("run.json", json.dumps(facts, indent=2, default=str) + "\n")

    def table(self, name: str) -> pd.DataFrame:
        """All rows written so far, by model, samples in order."""
        parts = self.files.names(f"{name}.parquet")
        if not parts:
            return pd.DataFrame(TABLES[name].empty_table().to_pandas())
        path, files = self.files.for_arrow(f"{name}.parquet")
        found: pd.DataFrame = pd.read_parquet(path, filesystem=files)
        return found

    def parts(self, name: str, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The rows of a table, or some columns of them, one part after the other."""
        for part in self.files.names(f"{name}.parquet"):
            path, files = self.files.for_arrow(f"{name}.parquet/{part}")
            yield pd.read_parquet(path, filesystem=files, columns=columns)

    def csv(self, name: str) -> pd.DataFrame:
        """A table that was written at the end."""
        text = self.files.read(name)
        numbers = [column for column in map(str, pd.read_csv(io.BytesIO(text), nrows=0)) if column not in _NAMES]
        missing = {column: [""] for column in numbers}
        return pd.read_csv(io.BytesIO(text), dtype=_NAMES, keep_default_na=False, na_values=missing)

    def pictures(self) -> list[dict[str, Any]]:
        """What was kept for the gallery: model, index, name, classes, image and maps by method and class."""
        names = [f"gallery/{name}" for name in sorted(self.files.names("gallery"), key=lambda name: name[0] == "d")]
        return [picture for name in names for picture in pictures_in(self.files, name)]

    def _another_run(self, facts: Mapping[str, Any], differing: list[str]) -> str:
        """That the folder holds another run, and what to do."""
        models = list(facts.get("identity", {}).get("models", ()))
        said = [one.removeprefix(f"models.{models[0]}.") if len(models) == 1 else one for one in differing]
        advice = f" To add a model to it, give it a name of its own: --model NAME=... (it has {', '.join(models)})."
        return (
            f"{self.files.where} holds another run: {'; '.join(said)}. Choose another folder with --out, or repeat the "
            f"command of that run: {facts.get('command', '')}"
            + advice
            * any(one.startswith("models.") for one in differing)
        )

    def _check_writable(self) -> None:
        probe = f".probe-{os.getpid()}{PART}"
        try:
            self.files.write(probe, bytes(_PROBE if self.files.local is not None else 1))
            self.files.remove(probe)
        except Exception as error:  # what a file system raises is its own
            raise OSError(
                f"Nothing can be written to {self.files.where}: {error}. Choose another folder with --out."
            ) from error

    def _make_room(self, folder: Path, expected_bytes: int) -> None:
        for left in folder.rglob(f".*{PART}"):  # by a process that was killed while it wrote
            if not left.name.startswith(".holder"):
                left.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
        if free < expected_bytes:
            raise OSError(
                f"The run will write about {expected_bytes / 1e6:.0f} MB, but the disk of {folder} has "
                f"{free / 1e6:.0f} MB left. Make room, or choose another folder with --out."
            )


def _grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run with what is added to it: models, methods and metrics, of which all are kept."""
    return {**new, **{part: old.get(part, {}) | new[part] for part in _GROWING if part in new}}


def _differences(old: Any, new: Any, path: str = "", *, growing: bool = False) -> list[str]:
    """What differs between two identities; of what is added nothing, if the run is growing."""
    if isinstance(old, dict) and isinstance(new, dict):
        added = growing and path in _GROWING
        names = sorted(old if added else {*old, *new})
        parts = ((old.get(n), new.get(n), f"{path}.{n}".strip(".")) for n in names)
        return [d for one, other, where in parts for d in _differences(one, other, where, growing=growing)]
    return [] if old == new else [f"{path} was {_short(old)} and is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:28] + " ... " + text[-28:]
