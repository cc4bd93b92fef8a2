"""What is given as data, as samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch.utils.data import DataLoader

from ._batches import Loaded, first_items, is_batch, is_stream, rows_of
from ._folder import Folder
from ._hugging_face import load_named
from ._items import KEYS, Items
from ._models import python_function
from ._pictures import Pictures
from ._samples import Samples
from ._table import ENDINGS, Table, read_table


class DigitScenes(Items):
    """Scenes of two handwritten digits; the label is one of them."""

    def __init__(self, count: int, seed: int, pictures: Pictures) -> None:
        from .digit_scenes import make_scenes

        scenes = make_scenes(count, digits=2, seed=seed)
        items = list(zip(scenes.images, scenes.labels[:, 0].tolist(), scenes.mask(0), strict=True))
        super().__init__(items, pictures, f"{count} scenes of two digits, seed {seed}")


@dataclass(frozen=True)
class Request:
    """How data are read.

    Attributes:
        pictures: How pictures become what the model takes.
        labels: The model's labels, or none.
        split: Which part of the data, or "".
        limit: How many samples at most.
        seed: Of the digit scenes.
        options: Arguments of the function that makes the data.
    """

    pictures: Pictures
    labels: Sequence[str] = ()
    split: str = ""
    limit: int | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def as_samples(data: Any, request: Request) -> Samples:
    """Samples of a name, a folder, a table, a dataset, a DataLoader, images, or (images, labels).

    Raises:
        TypeError: if the data are none of these.
        ValueError: if there are none.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, str | Path):
        return _named(str(data), request)
    if isinstance(data, pd.DataFrame):
        return Table(data, Path(), "the table", request.pictures, request.labels, request.split)
    if isinstance(data, Mapping) and not data.keys() & {key for keys in KEYS.values() for key in keys}:  # of splits
        if request.split not in data:
            raise ValueError(f"Expected `split` to be one of {', '.join(map(repr, data))}, got {request.split!r}.")
        return _items(data[request.split], request)
    if request.split:
        raise ValueError(
            f"Expected no split for data of type {type(data).__name__}, got {request.split!r}. Tables have splits, "
            "folders with a folder for each, and hf:NAME."
        )
    return _items(data, request)


def _named(name: str, request: Request) -> Samples:
    if name.startswith("hf:"):
        found = load_named(name.removeprefix("hf:"), request.split, request.options)
        return _items(found, request, name)
    path = Path(name)
    if path.suffix.lower() in ENDINGS and (path.is_file() or (path.suffix.lower() == ".parquet" and path.is_dir())):
        return read_table(path, request.pictures, request.labels, request.split)
    if path.is_file():
        raise ValueError(f"Expected `data` to be a folder, or a list of images, got the file {name}: pass [{name!r}].")
    if name not in ("digits",) and not name.startswith("python:"):
        return Folder(path, request.pictures, request.labels, request.split)
    if request.split:
        raise ValueError(f"Expected no split for data {name!r}, got {request.split!r}.")
    if name == "digits":
        return DigitScenes(request.limit or 100, request.seed, request.pictures)
    try:
        items = python_function(name.removeprefix("python:"))(**request.options)
    except Exception as error:
        raise ValueError(f"Data {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return _items(items, request, name)


def _items(data: Any, request: Request, description: str = "") -> Items:
    source, kind = data, type(data).__name__
    if isinstance(data, DataLoader):
        source, data = data.dataset, Loaded(data)
    elif isinstance(data, Mapping) or is_batch(data):
        data = rows_of(data)
    elif is_stream(data):
        data = first_items(data, request.limit)
    return Items(data, request.pictures, description or f"{len(data)} samples of a {kind}", source, request.labels)
