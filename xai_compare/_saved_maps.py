"""Whole maps as one .npz file for each method, for numpy."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ._run_folder import RunFolder

Cell = tuple[str, str]  # a model and a method


class _File:
    """An .npz file that is written row by row."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._member = self._zip.open("maps.npy", "w", force_zip64=True)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self._member, header)

    def add(self, maps: npt.NDArray[np.float32]) -> None:
        self._member.write(np.ascontiguousarray(maps, "<f4").tobytes())

    def close(self, **further: npt.NDArray[Any]) -> None:
        self._member.close()
        for name, array in further.items():
            with self._zip.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        self._zip.close()


def export(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Write all maps that are kept as `maps/METHOD.npz`, with several models `maps/MODEL/METHOD.npz`.

    Each has `maps` (samples, height, width) and for each row `sample`, `name`, `target` and `label`, the name of the
    target's class. One part of the run is read at a time.
    """
    sizes = _sizes(folder)
    explanations = folder.table("explanations")
    kept: dict[Cell, list[int]] = {cell: [] for cell in sizes}
    several = len(facts["models"]) > 1
    with ExitStack() as stack:
        opened = {}
        for cell, shape in sizes.items():
            model, method = cell
            name = f"maps/{f'{model}/' * several}{method}.npz"
            opened[cell] = _File(stack.enter_context(folder.files.writing(name)), shape)
        for part in folder.parts("maps"):
            for cell, rows in _cells(part):
                opened[cell].add(_stacked(rows))
                kept[cell] += rows["sample"].to_list()
        for cell, about in _cells(explanations):
            if cell in opened:
                labels = facts["models"][cell[0]]["labels"]
                opened[cell].close(**_columns(about.set_index("sample").loc[kept[cell]], labels))


def _cells(table: pd.DataFrame) -> Iterator[tuple[Cell, pd.DataFrame]]:
    for (model, method), rows in table.groupby(["model", "method"], sort=False):
        yield (str(model), str(method)), rows


def _stacked(rows: pd.DataFrame) -> npt.NDArray[np.float32]:
    maps: npt.NDArray[np.float32] = np.stack(rows["map"].to_list())
    return maps


def _columns(about: pd.DataFrame, labels: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    names = {-1: "the target function"} | dict(enumerate(labels))
    targets = [int(target) for target in about["target"]]
    return {
        "sample": about.index.to_numpy(),
        "name": np.array(list(map(str, about["name"])), dtype=str),
        "target": np.array(targets),
        "label": np.array([names.get(target, f"class {target}") for target in targets], dtype=str),
    }


def _sizes(folder: RunFolder) -> dict[Cell, tuple[int, ...]]:
    """The shape of all maps of each model and method."""
    found: dict[Cell, tuple[int, ...]] = {}
    for part in folder.parts("maps", columns=["model", "method", "shape"]):
        for cell, rows in _cells(part):
            count = found.get(cell, (0,))[0] + len(rows)
            found[cell] = (count, *map(int, rows["shape"].iloc[0]))
    return found
