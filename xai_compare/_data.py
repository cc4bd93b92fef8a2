"""The samples that are explained, read one at a time."""

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapters.models import add_tensor

from ._models import Transform, python_function


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        index: Its index in the data.
        name: Its name in the results.
        image: (channels, height, width), preprocessed for the model.
        label: Its class, or None.
        mask: (height, width), where the label's object is, or None.
    """

    index: int
    name: str
    image: Tensor
    label: int | None = None
    mask: Tensor | None = None


class Samples(ABC):
    """Data of a known length.

    Attributes:
        description: For the report.
    """

    description: str

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of a sample."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A string that changes with the data."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """One sample; any exception means that it cannot be read."""


class Folder(Samples):
    """All images below a folder; each subfolder is a class, and classes are sampled round-robin.

    So a `limit` keeps images of all classes.
    """

    def __init__(self, root: Path, transform: Transform | None) -> None:
        if not root.is_dir():
            raise ValueError(
                f"Expected `data` to be a folder of images or 'digits', got {str(root)!r}, which is not a folder."
            )
        if transform is None:
            raise ValueError(
                "Images in a folder need a transform, and this model has none: let the function return "
                "(model, transform), or pass a dataset of tensors."
            )
        Image.init()
        known = set(Image.EXTENSION)
        self._root = root
        self._transform = transform
        folders = defaultdict(list)  # "": the images that are in none
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in known and path.is_file() and not path.name.startswith("."):
                folders[path.relative_to(root).parts[0] if path.parent != root else ""].append(path)
        self._classes = {name: index for index, name in enumerate(sorted({*folders} - {""}))}
        self._paths = [path for turn in zip_longest(*folders.values()) for path in turn if path is not None]
        if not self._paths:
            raise ValueError(f"Expected images in {root}, found none (of {', '.join(sorted(known)[:12])}, ...).")
        self.description = f"{len(self._paths)} images in {root}"

    def __len__(self) -> int:
        """The number of images."""
        return len(self._paths)

    def name(self, index: int) -> str:
        """Its path below the folder."""
        return self._paths[index].relative_to(self._root).as_posix()

    def fingerprint(self) -> str:
        """SHA-256 of paths and sizes, and of what the transform makes of the first and last images."""
        listed = [f"{self.name(i)} {path.stat().st_size}" for i, path in enumerate(self._paths)]
        return _digest("\n".join(listed), self, (0, len(self) - 1))

    def read(self, index: int) -> Sample:
        """The image, preprocessed."""
        name = self.name(index)
        with Image.open(self._paths[index]) as file:
            image = torch.as_tensor(self._transform(file.convert("RGB")))
        return Sample(index, name, image, self._classes.get(name.split("/")[0]))


class Items(Samples):
    """A dataset: each item an image, or a tuple of an image, its label and, where known, the mask of its object."""

    def __init__(self, items: Any, transform: Transform | None = None, description: str = "") -> None:
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            raise TypeError(f"Expected `data` to be a folder or a dataset with a length, got {type(items)}.")
        if len(items) == 0:
            raise ValueError("Expected `data` with at least one sample, got none.")
        self._items = items
        self._transform = transform
        self.description = description or f"{len(items)} samples of a {type(items).__name__}"

    def __len__(self) -> int:
        """The number of items."""
        return len(self._items)

    def name(self, index: int) -> str:
        """Its index."""
        return str(index)

    def fingerprint(self) -> str:
        """SHA-256 of the length, and of all items of a list or tensor, of others of the first and the last."""
        in_memory = isinstance(self._items, list | Tensor)
        return _digest(str(len(self)), self, range(len(self)) if in_memory else (0, len(self) - 1))

    def read(self, index: int) -> Sample:
        """The item, preprocessed."""
        item = self._items[index]
        image, *rest = item if isinstance(item, tuple | list) else (item,)
        image = self._ready(image)
        label = None if not rest or rest[0] is None else int(rest[0])
        mask = torch.as_tensor(rest[1]) if len(rest) > 1 and rest[1] is not None else None
        return Sample(index, self.name(index), image, label, None if mask is None else mask.reshape(image.shape[1:]))

    def _ready(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            if self._transform is None:
                raise TypeError("Expected tensors, as no transform is known; got a PIL image.")
            return torch.as_tensor(self._transform(image.convert("RGB")))
        image = torch.as_tensor(image if isinstance(image, Tensor) else np.asarray(image))
        if image.dim() != 3:
            raise ValueError(f"Expected images (channels, height, width), got shape {tuple(image.shape)}.")
        return torch.as_tensor(image)


def _digest(text: str, samples: Samples, indices: Iterable[int]) -> str:
    """SHA-256 of a text and of some samples: images, labels and masks."""
    digest = hashlib.sha256(text.encode())
    for index in indices:
        try:
            sample = samples.read(index)
        except Exception as error:  # it will be listed among the skipped ones
            digest.update(str(type(error)).encode())
            continue
        digest.update(f"{sample.label} {sample.image.dtype} {tuple(sample.image.shape)}".encode())
        for array in (sample.image, sample.mask):
            if array is not None:
                add_tensor(digest, array)
    return digest.hexdigest()


class DigitScenes(Items):
    """Scenes of two handwritten digits; the label is one of them."""

    def __init__(self, count: int, seed: int) -> None:
        from .digit_scenes import make_scenes

        scenes = make_scenes(count, digits=2, seed=seed)
        items = list(zip(scenes.images, scenes.labels[:, 0].tolist(), scenes.mask(0), strict=True))
        super().__init__(items, description=f"{count} scenes of two digits, seed {seed}")


def as_samples(
    data: Any, transform: Transform | None, limit: int | None, seed: int, options: Mapping[str, Any]
) -> Samples:
    """Samples of a name, a folder, a dataset, images, or (images, labels).

    Raises:
        TypeError: if the data are none of these.
        ValueError: if there are none.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, str) and data == "digits":
        return DigitScenes(limit or 100, seed)
    if isinstance(data, str) and data.startswith("python:"):
        try:
            items = python_function(data.removeprefix("python:"))(**options)
        except Exception as error:
            raise ValueError(f"Data {data!r} cannot be loaded: {type(error).__name__}: {error}") from error
        return Items(items, transform, description=data)
    if isinstance(data, str | Path):
        return Folder(Path(data), transform)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray) and data[0].ndim == 4:
        if len(data[0]) != len(data[1]):
            raise ValueError(f"Expected one label for each image, got {len(data[0])} images, {len(data[1])} labels.")
        return Items(list(zip(*data, strict=True)), transform)
    return Items(data, transform)


def stacked(samples: Sequence[Sample]) -> Tensor:
    """The images of a batch.

    Raises:
        ValueError: if their shapes differ.
    """
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"Expected images of one shape, got {sorted(shapes)}. Resize and crop them in the transform.")
    return torch.stack([sample.image for sample in samples])
