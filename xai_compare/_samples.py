"""What is explained: samples, read one at a time."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.models import add_tensor

from ._classes import Classes


@dataclass(frozen=True)
class Sample:
    """One image, signal or volume.

    Attributes:
        index: Its index in the data.
        name: Its name in the results.
        image: (channels, height, width), preprocessed for the model; or (channels, length), or (channels, depth,
            height, width).
        labels: Its classes: one, none where it is not known, or several.
        unlabelled: Why it has none, for the list of skipped samples.
        hot: Of how many classes the label says whether they are there; 0: it is numbers of classes.
        asked: What is explained, where it is no class.
        mask: (height, width) or as many axes as the image has, where the object is; or None.
    """

    index: int
    name: str
    image: Tensor
    labels: tuple[int, ...] = ()
    mask: Tensor | None = None
    unlabelled: str = "it has no label"
    hot: int = 0
    asked: str = ""


class Samples(ABC):
    """Data of a known length.

    Attributes:
        description: For the report.
        classes: The model's classes that names in the data stand for, where it has names.
        advice: Why the names seem to be no classes, and what to do; or "".
    """

    description: str
    classes: Classes = Classes()
    advice: str = ""

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

    def check_labels(self, count: int | None = None) -> None:
        """Raise a ValueError if its labels cannot be classes of a model, which has `count`, if that is known."""
        said = self.advice or (self.classes.problem if count is None else self.classes.misfit(count))
        if said:
            raise ValueError(said)

    def digest(self, text: str, indices: Iterable[int]) -> str:
        """SHA-256 of a text, of the classes, and of some samples: images, labels and masks."""
        digest = hashlib.sha256(text.encode())
        digest.update(repr(sorted(self.classes.numbers.items())).encode() if self.classes.numbers else b"")
        for index in indices:
            try:
                sample = self.read(index)
            except Exception as error:  # it will be listed among the skipped ones
                digest.update(str(type(error)).encode())
                continue
            digest.update(f"{sample.labels} {sample.image.dtype} {tuple(sample.image.shape)}".encode())
            for array in (sample.image, sample.mask):
                if array is not None:
                    add_tensor(digest, array)
        return digest.hexdigest()


def stacked(samples: Sequence[Sample]) -> Tensor:
    """The images of a batch.

    Raises:
        ValueError: if their shapes differ.
    """
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"Expected images of one shape, got {sorted(shapes)}. Resize and crop them in the transform.")
    return torch.stack([sample.image for sample in samples])
