"""Data with questions: rows of an image, a question and its answer."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from .._cells import box_in, is_empty
from .._hugging_face import load_named
from .._pictures import as_rgb, opened

KEYS = {
    "image": ("image", "file", "file_name"),
    "question": ("question",),
    "answer": ("answer",),
    "against": ("against",),
    "box": ("box",),
}
_ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
_LISTS = [f"{name}{ending}" for name in ("questions", "metadata") for ending in _ENDINGS]  # in a folder of images


@dataclass(frozen=True)
class AskedSample:
    """A question about an image, or without one.

    Attributes:
        index: Its index in the data.
        name: Its name in the results.
        question: What is asked.
        answer: The answer that is explained.
        against: The answer that it is compared with, or None.
        picture: The image, or None.
        box: (left, top, right, bottom) of what the answer is about, in pixels of the image; or None.
    """

    index: int
    name: str
    question: str
    answer: str
    against: str | None = None
    picture: Image.Image | None = None
    box: tuple[float, float, float, float] | None = None

    @property
    def asked(self) -> str:
        """What is explained, for the report."""
        return f"answer “{self.answer}”" + (f", not “{self.against}”" if self.against else "")


class Questions:
    """Rows with questions and answers.

    Args:
        rows: Reads a row by its index: a mapping with some of the names in `KEYS`.
        count: How many rows.
        root: Where the files of images are.
        source: For the report.
    """

    def __init__(self, rows: Callable[[int], Mapping[str, Any]], count: int, root: Path, source: str) -> None:
        if count == 0:
            raise ValueError(f"Expected questions in {source}, got no row.")
        self._rows, self._count, self._root = rows, count, root
        self.description = f"{count} questions of {source}"

    def __len__(self) -> int:
        """The number of questions."""
        return self._count

    def name(self, index: int) -> str:
        """The file and the question."""
        row = self._rows(index)
        file, question = _of(row, "image"), _of(row, "question")
        return f"{file}: {question}" if isinstance(file, str) else str(question)

    def has_image(self, index: int) -> bool:
        """Whether a row has an image."""
        return _of(self._rows(index), "image") is not None

    def fingerprint(self) -> str:
        """SHA-256 of all texts, of the names and sizes of files, and of images that are given."""
        digest = hashlib.sha256()
        for index in range(self._count):
            row = self._rows(index)
            image = _of(row, "image")
            path = self._root / image if isinstance(image, str | Path) else None
            size = path.stat().st_size if path is not None and path.is_file() else 0
            texts = [str(_of(row, key)) for key in KEYS if key != "image"]
            digest.update(repr([*texts, None if path is None else str(image), size]).encode())
            if isinstance(image, Image.Image):
                digest.update(repr((image.size, image.mode)).encode() + image.tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> AskedSample:
        """A question with its image.

        Raises:
            OSError: if the image cannot be read.
            ValueError: if the row has no question or answer.
        """
        row = self._rows(index)
        texts = {key: _of(row, key) for key in ("question", "answer", "against")}
        for key, text in texts.items():
            if not (isinstance(text, str) or (key == "against" and text is None)):
                raise ValueError(f"expected a text as `{key}`, got {text!r}")
        picture = _opened(self._root, _of(row, "image"))
        box = None if _of(row, "box") is None else box_in(_of(row, "box"))
        return AskedSample(index, self.name(index), **texts, picture=picture, box=box)


def questions_in(data: Any, split: str = "", options: Mapping[str, Any] | None = None) -> Questions | None:
    """Data as questions; None if they have no questions and answers.

    Args:
        data: A table, or its file (.csv, .tsv, .parquet, .jsonl), with columns question and answer, and, if the
            questions are about images, file; a folder of images with such a file, called questions or metadata; a list
            of mappings or a dataset of Hugging Face with these keys; or "hf:NAME".
        split: Which rows of a table with the column split, or which part of a dataset.
        options: Arguments of the function that loads "hf:NAME".
    """
    if isinstance(data, pd.DataFrame):
        return _of_table(data, Path(), "the table", split)
    if isinstance(data, str) and data.startswith("hf:"):
        found = load_named(data.removeprefix("hf:"), split, options or {})
        return _of_rows(found, data)
    if isinstance(data, str | Path):
        path = _list_of(Path(data))
        return None if path is None else _of_table(_read(path), path.parent, str(path), split)
    return _of_rows(data, f"a {type(data).__name__}")


def _list_of(path: Path) -> Path | None:
    """The file with the rows: the path itself, or one in the folder."""
    if path.is_dir():
        return next((path / name for name in _LISTS if (path / name).is_file()), None)
    return path if path.suffix.lower() in _ENDINGS and path.exists() else None


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        if path.suffix.lower() == ".jsonl":
            return pd.read_json(path, lines=True, dtype=False)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _of_table(table: pd.DataFrame, root: Path, source: str, split: str) -> Questions | None:
    table = table.rename(columns=lambda name: str(name).strip().lower())
    if not {"question", "answer"} <= set(table.columns):
        return None
    if split:
        of_split = table[table["split"].astype(str) == split] if "split" in table else table[:0]
        if of_split.empty:
            known = ", ".join(sorted(set(table["split"].astype(str)))) if "split" in table else "no column split"
            raise ValueError(f"{source} has no rows of the split {split!r}; it has {known}.")
        table = of_split
    return Questions(lambda index: {str(k): v for k, v in table.iloc[index].items()}, len(table), root, source)


def _of_rows(data: Any, source: str) -> Questions | None:
    names = getattr(data, "column_names", None)  # of a dataset of Hugging Face
    if isinstance(data, list | tuple) and data and isinstance(data[0], Mapping):
        names = list(data[0])
    if not isinstance(names, list) or not {"question", "answer"} <= set(names) or not hasattr(data, "__getitem__"):
        return None
    return Questions(data.__getitem__, len(data), Path(), source)


def _of(row: Mapping[str, Any], key: str) -> Any:
    """What a row says under one of a key's names; None if that is empty."""
    found = next((row[name] for name in KEYS[key] if name in row), None)
    return None if is_empty(found) else found


def _opened(root: Path, image: Any) -> Image.Image | None:
    if image is None:
        return None
    if not isinstance(image, str | Path | Image.Image):
        raise ValueError(f"expected an image as a file or a PIL image, got {type(image).__name__}")
    return as_rgb(image if isinstance(image, Image.Image) else opened(root / image))
