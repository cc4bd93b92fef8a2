"""The samples of a dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ._cells import box_in, box_mask
from ._classes import classes_of
from ._pictures import Pictures, opened
from ._samples import Sample, Samples

KEYS = {
    "image": ("image", "pixel_values", "img", "input", "inputs", "x"),
    "label": ("label", "labels", "target", "targets", "class", "y"),
    "mask": ("mask", "masks", "segmentation"),
    "box": ("box", "bbox"),
}


class Items(Samples):
    """A dataset, whose items are images, tuples (image, label, mask), or dictionaries of these; an image may be a file.

    Where the dataset names its classes, they are matched with the model's labels.
    """

    def __init__(
        self, items: Any, pictures: Pictures, description: str, source: Any = None, labels: Sequence[str] = ()
    ) -> None:
        if len(items) == 0:
            raise ValueError("Expected `data` with at least one sample, got none.")
        self._items, self._pictures, self.description = items, pictures, description
        self._labels = labels
        self._names, self._lists = class_names(source)
        self.classes = classes_of(self._names, labels)

    def __len__(self) -> int:
        """The number of items."""
        return len(self._items)

    def name(self, index: int) -> str:
        """Its index."""
        return str(index)

    def fingerprint(self) -> str:
        """SHA-256 of the length, and of all items of a list or tensor, of others of the first and the last."""
        in_memory = isinstance(self._items, list | Tensor)
        return self.digest(str(len(self)), range(len(self)) if in_memory else (0, len(self) - 1))

    def read(self, index: int) -> Sample:
        """The item, preprocessed."""
        parts = item_parts(self._items[index])
        picture = parts["image"]
        picture = opened(Path(picture)) if isinstance(picture, str | Path) else picture
        image = self._ready(picture)
        mask = parts.get("mask")
        if mask is None and parts.get("box") is not None:
            sides = picture.size[::-1] if isinstance(picture, Image.Image) else tuple(image.shape[1:])
            mask = box_mask(box_in(_plain(parts["box"])), *sides)
        if mask is not None:
            mask = self._pictures.mask(mask, picture if isinstance(picture, Image.Image) else None, image)
        try:
            labels, hot = self._numbers(parts.get("label"), image)
            return Sample(index, self.name(index), image, labels, mask, hot=hot)
        except ValueError as error:  # which matters only where labels are explained
            return Sample(index, self.name(index), image, (), mask, unlabelled=str(error))

    def _ready(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            return self._pictures.ready(image)
        try:
            found = torch.as_tensor(image if isinstance(image, Tensor) else np.asarray(image))
        except TypeError as error:
            raise TypeError(f"Expected an image as a tensor, an array or a PIL image, got {type(image)}.") from error
        if found.dim() not in (2, 3, 4):
            raise ValueError(
                "Expected images (channels, height, width), signals (channels, length) or volumes (channels, depth, "
                f"height, width), got shape {tuple(found.shape)}."
            )
        return found

    def _numbers(self, label: Any, image: Tensor) -> tuple[tuple[int, ...], int]:
        """The classes of a label, as the model numbers them, and how many zeros and ones it is, if it is these."""
        if isinstance(label, str):
            found = self.classes if self._names else classes_of([label], self._labels)
            if label not in found.numbers or not (self._names or found.labels):
                raise ValueError(f"its label is {label!r}: return the number of the class, or give labels=[...]")
            return (found.numbers[label],), 0
        numbers, hot = label_numbers(label, image, self._lists)
        if self.classes.numbers:
            if any(not 0 <= number < len(self._names) for number in numbers):
                raise ValueError(f"its label is {label!r}, but its dataset names {len(self._names)} classes")
            numbers, hot = tuple(self.classes.numbers[self._names[number]] for number in numbers), 0
        return numbers, hot


def class_names(items: Any) -> tuple[list[str], bool]:
    """The names of a dataset's classes, as torchvision (`classes`) or Hugging Face (`features`) say them, or none.

    Also whether its labels are lists of numbers of classes.
    """
    if isinstance(items, Subset):
        return class_names(items.dataset)
    if isinstance(items, ConcatDataset):
        first, *others = map(class_names, items.datasets)
        return first if all(one == first for one in others) else ([], False)
    names, lists = getattr(items, "classes", None), False
    features = getattr(items, "features", None)
    if isinstance(features, Mapping):
        label = next((features[key] for key in KEYS["label"] if key in features), None)
        lists = hasattr(label, "feature")
        names = getattr(getattr(label, "feature", label), "names", None)
    return list(map(str, names)) if isinstance(names, list | tuple) else [], lists


def item_parts(item: Any) -> dict[str, Any]:
    """Image, label, mask and box of an item.

    Raises:
        ValueError: if a dictionary has no image, or a tuple too many parts.
    """
    if isinstance(item, Mapping):
        found = {part: next((item[key] for key in keys if key in item), None) for part, keys in KEYS.items()}
        if found["image"] is None:
            raise ValueError(
                f"Expected a dictionary with image or pixel_values and, where known, label, mask and box; got the keys "
                f"{', '.join(map(str, item))}."
            )
        return found
    parts = list(item) if isinstance(item, tuple | list) else [item]
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"Expected an image, (image, label) or (image, label, mask), got {len(parts)} parts.")
    return dict(zip(("image", "label", "mask"), parts, strict=False))


def label_numbers(label: Any, image: Tensor, lists: bool = False) -> tuple[tuple[int, ...], int]:
    """The classes of a label, and the number of its zeros and ones, if it is that.

    Args:
        label: The number of a class; zeros and ones for all classes; numbers of several classes; or None.
        image: The image, whose mask the label may be by mistake.
        lists: Whether several values are known to be numbers of classes.

    Raises:
        ValueError: if it is something else; the message says what to return.
    """
    if label is None:
        return (), 0
    said = "expected the label to be the number of a class, or zeros and ones for all classes; got"
    try:
        found = np.asarray(label.cpu() if isinstance(label, Tensor) else label)
        values = found.astype(float).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{said} {label!r}"[:300]) from error
    if found.ndim > 1 and found.shape[-2:] == tuple(image.shape[-2:]):
        raise ValueError(
            f"its label has shape {found.shape}, as a mask: return (image, label, mask), or a dictionary of image, "
            "label and mask"
        )
    if not np.equal(np.mod(values, 1), 0).all():
        raise ValueError(f"{said} {label!r}"[:300])
    numbers = [int(one) for one in values]
    if len(numbers) > 1 and set(numbers) <= {0, 1} and not lists:
        return tuple(index for index, one in enumerate(numbers) if one), len(numbers)
    return tuple(dict.fromkeys(numbers)), 0


def _plain(box: Any) -> list[float]:
    return [float(one) for one in (box.tolist() if isinstance(box, Tensor | np.ndarray) else box)]
