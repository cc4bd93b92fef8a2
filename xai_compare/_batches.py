"""Data that are given as batches or one after the other, as items by index."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

_ORDERS = (SequentialSampler, RandomSampler)


class Loaded:
    """The samples of a DataLoader in the order of its dataset, each collated alone.

    Raises:
        TypeError: if its dataset has no items by index, or a sampler of its own leaves some out.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not hasattr(loader.dataset, "__getitem__") or not hasattr(loader.dataset, "__len__"):
            raise TypeError(f"Expected a DataLoader of a dataset with items by index, got {type(loader.dataset)}.")
        if not isinstance(getattr(loader, "sampler", None), _ORDERS):
            raise TypeError(
                f"Expected a DataLoader whose samples are those of its dataset, got {type(loader.sampler)}. "
                "Pass a torch.utils.data.Subset of the dataset."
            )
        self._dataset: Any = loader.dataset
        self._collate, self._batched = loader.collate_fn, loader.batch_sampler is not None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        item = self._dataset[index]
        return _row(self._collate([item]), 0) if self._batched else self._collate(item)


def is_batch(data: Any) -> bool:
    """Whether data are a tuple of images (samples, channels, ...) and what else is known of each."""
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        return False
    first, second = data[:2]
    if isinstance(first, list):  # of images, and one of labels
        return bool(first) and all(isinstance(one, Tensor | np.ndarray | Image.Image) for one in first)
    return isinstance(first, Tensor | np.ndarray) and first.ndim > 2 and getattr(second, "ndim", 1) < 3


def rows_of(data: Any) -> list[Any]:
    """The items of a batch: a dictionary, or a tuple, of columns.

    Raises:
        ValueError: if the columns differ in length.
    """
    named = data if isinstance(data, Mapping) else dict(zip(("image", "label", "mask"), data, strict=False))
    columns = {name: column for name, column in named.items() if hasattr(column, "__len__")}
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{count} of {name}" for name, count in sizes.items())
        raise ValueError(f"Expected as many of each as there are samples, got {said}.")
    return [{name: column[i] for name, column in columns.items()} for i in range(next(iter(sizes.values()), 0))]


def first_items(data: Any, limit: int | None) -> list[Any]:
    """The items of what can only be read from the start, as a stream.

    Raises:
        TypeError: if it cannot be read.
        ValueError: if nothing says how many.
    """
    if not isinstance(data, Iterable):
        raise TypeError(
            f"Expected `data` to be a folder, a .csv or .parquet table, a dataset, a DataLoader, images or (images, "
            f"labels); got {type(data)}."
        )
    if limit is None:
        raise ValueError(f"Expected a limit for data that are read one after the other, as {type(data)}: limit=100.")
    return list(islice(iter(data), limit))


def _row(batch: Any, index: int) -> Any:
    """One item of a batch."""
    if isinstance(batch, Mapping):
        return {key: _row(column, index) for key, column in batch.items()}
    if isinstance(batch, tuple) or (isinstance(batch, list) and batch and isinstance(batch[0], Tensor | np.ndarray)):
        return tuple(_row(column, index) for column in batch)
    return batch[index]


def is_stream(data: Any) -> bool:
    """Whether data have no items by index."""
    return isinstance(data, IterableDataset | type) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__"))
