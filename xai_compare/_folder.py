"""The images below a folder."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from ._classes import classes_of
from ._lock import LOCK
from ._pictures import Pictures, extensions, opened
from ._samples import Sample, Samples

_OF_RUNS = ("run.json", LOCK)  # in the folder of a comparison, from its begin on
_EXPLAINED = "explanation.json"  # of `xai-discern explain`, beside the maps
_MAP = re.compile(r"\.maps\.png$|\.[^.]+\.[^.]+\.npy$")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}


class Folder(Samples):
    """All images below a folder; each subfolder is a class, and classes are sampled round-robin.

    So a `limit` keeps images of all classes. What is hidden is left out, and what this project's commands wrote.
    """

    def __init__(self, root: Path, pictures: Pictures, labels: Sequence[str] = (), split: str = "") -> None:
        if not root.is_dir():
            raise ValueError(
                f"Expected `data` to be a folder of images or 'digits', got {str(root)!r}, which is not a folder. "
                "Tables end in .csv, .tsv or .parquet; data of Hugging Face begin with hf:, functions with python:."
            )
        names = sorted(one.name for one in _visible(root) if one.is_dir())
        if split:
            if split not in names:
                raise ValueError(f"{root} has no folder {split!r}; its folders are {', '.join(names) or 'none'}.")
            root = root / split
            names = sorted(one.name for one in _visible(root) if one.is_dir())
        self._root, self._pictures = root, pictures
        folders = defaultdict(list)  # "": the images that are in none
        for path in images_below(root):
            folders[path.relative_to(root).parts[0] if path.parent != root else ""].append(path)
        self._paths = [path for turn in zip_longest(*folders.values()) for path in turn if path is not None]
        if not self._paths:
            known = ", ".join(sorted(extensions())[:12])
            raise ValueError(f"Expected images in {root}, found none (of {known}, ...).")
        if pictures.transform is None and any(path.suffix.lower() != ".npy" for path in self._paths):
            raise ValueError(
                "Images in a folder need a transform, and this model has none: let the function return "
                "(model, transform), or pass a dataset of tensors."
            )
        self.classes = classes_of(names, labels)
        self.advice = _advice(root, names) if not self.classes.labels else ""
        self.description = f"{len(self._paths)} images in {root}"

    def __len__(self) -> int:
        """The number of images."""
        return len(self._paths)

    def name(self, index: int) -> str:
        """Its path below the folder."""
        return self._paths[index].relative_to(self._root).as_posix()

    def fingerprint(self) -> str:
        """SHA-256 of paths, sizes and classes, and of what the transform makes of the first and last images."""
        listed = [f"{self.name(i)} {path.stat().st_size}" for i, path in enumerate(self._paths)]
        return self.digest("\n".join(listed), (0, len(self) - 1))

    def read(self, index: int) -> Sample:
        """The image, preprocessed."""
        name = self.name(index)
        image = self._pictures.ready(opened(self._paths[index]))
        label = self.classes.numbers.get(name.split("/")[0])
        return Sample(index, name, image, () if label is None else (label,))


def images_below(root: Path) -> list[Path]:
    """All images of a folder that are not hidden, also in folders that are links, in order.

    What this project's commands wrote there is left out: the folders of comparisons, and the maps of explained images.
    """
    known = extensions()
    return sorted(path for path in _files(root) if path.suffix.lower() in known)


def _visible(folder: Path) -> Iterator[Path]:
    return (one for one in folder.iterdir() if not (one.name.startswith(".") or _is_run(one)))


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True):
        above = root.resolve(), Path(folder).resolve()
        folders[:] = [one.name for one in _visible(Path(folder)) if one.is_dir() and not _leads_to(one, above)]
        explained = _EXPLAINED in files
        yield from (
            Path(folder, name) for name in files if not (name.startswith(".") or (explained and _MAP.search(name)))
        )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OF_RUNS)


def _leads_to(link: Path, above: tuple[Path, ...]) -> bool:
    return link.is_symlink() and any(one.is_relative_to(link.resolve()) for one in above)


def _advice(root: Path, names: Sequence[str]) -> str:
    """What to do where the folders are parts of the data, not classes, or nothing."""
    if not names or not {name.lower() for name in names} <= _SPLITS:
        return ""
    return (
        f"{root} holds {', '.join(names)}, which look like parts of the data, not classes: choose one with "
        f"split={names[-1]!r}, on the command line --split {names[-1]}."
    )
