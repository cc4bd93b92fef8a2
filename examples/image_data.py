"""Images with classes, by a name or a path: digit scenes, blood cells, folders of images, or a MedMNIST file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import blood_cells
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from xai_compare.digit_scenes import make_scenes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
DIGITS = {"train": (6000, 10), "validation": (1000, 11), "test": (1000, 12)}  # scenes and seed
FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "validation", "val")}
Split = Literal["train", "validation", "test"]
_KINDS = (
    "'digits', a folder with `Annotations` and `JPEGImages` (the blood cells of BCCD), a folder with `train` and `val` "
    "that hold a folder for each class, or a .npz file of MedMNIST"
)


class ImageData(Dataset):
    """Images in memory.

    Args:
        images: (images, channels, height, width), float, or bytes that are divided by 255.
        labels: (images,), from 0 on.
        classes: The names of the classes.
        turns: Is each image flipped and turned by right angles at random when it is read?
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], turns: bool = False) -> None:
        self.images, self.labels, self.classes, self.turns = images, labels, tuple(classes), turns

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if not image.is_floating_point():
            image = image.float() / 255
        if self.turns:
            quarters, flipped = torch.randint(4, ()), torch.randint(2, ())
            image = torch.rot90(image.flip(-1) if flipped else image, int(quarters), (1, 2))
        return image, int(self.labels[index])


class Part(Subset):
    """Some images of another data set, with its classes."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
        super().__init__(dataset, chosen.tolist())
        self.classes = dataset.classes


def load_data(name: str | Path, split: Split, image_size: int | None = None, limit: int | None = None) -> Dataset:
    """Pairs of an image (channels, height, width) and a label, with the names `classes`.

    Digits and MedMNIST have values from 0 to 1 (digits with a little noise); cells are normalised by their own mean and
    deviation, so that 0 is the colour between cells, and folders of images as ImageNet is. Training images of folders
    are cropped and flipped at random, those of cells flipped and turned.

    Args:
        name: `"digits"`, or the path of a folder or file.
        split: "train", "validation" or "test"; a folder without `test` tests on its validation images.
        image_size: Height and width. None: 224 for folders, else as they are.
        limit: Only so many images, chosen at random, the same ones at each call.

    Raises:
        FileNotFoundError: if there is nothing of this name.
        ValueError: if what is there is not one of these, or the split or size is not known.
    """
    if split not in FOLDERS:
        raise ValueError(f"Expected a split of {', '.join(FOLDERS)}; got {split!r}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"Expected an image size of 1 or more, got {image_size}.")
    data = _load(name, split, image_size)
    return data if limit is None or limit >= len(data) else Part(data, limit)


def load_splits(name: str | Path) -> dict[str, Dataset]:
    """All three splits."""
    return {split: load_data(name, split) for split in FOLDERS}


def _load(name: str | Path, split: Split, size: int | None) -> Dataset:
    path = Path(name)
    if str(name) == "digits":
        return _digits(split, size)
    if not path.exists():
        raise FileNotFoundError(f"Expected {_KINDS}; there is nothing at {path}.")
    if path.is_file():
        return _medmnist(path, split, size)
    if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
        cells = blood_cells.load_cells(path, split)
        pixels = v2.functional.normalize(_resized(cells.images, size), list(blood_cells.MEAN), list(blood_cells.STD))
        return ImageData(pixels, cells.labels, blood_cells.CLASSES, turns=split == "train")
    return _folder(path, split, size or 224)


def _digits(split: Split, size: int | None) -> ImageData:
    count, seed = DIGITS[split]
    scenes = make_scenes(count, split, digits=1, seed=seed)
    return ImageData(_resized(scenes.images, size), scenes.labels[:, 0], [str(digit) for digit in range(10)])


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or tuple(images.shape[-2:]) == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _folder(path: Path, split: Split, size: int) -> ImageFolder:
    found = {
        known: next((path / name for name in names if (path / name).is_dir()), None) for known, names in FOLDERS.items()
    }
    if found["train"] is None or found["validation"] is None:
        inside = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"Expected {_KINDS}; the folder {path} holds {inside}. For your own images, put those to learn from into "
            f"{path}/train/CLASS/ and those to choose by into {path}/val/CLASS/."
        )
    if split == "train":
        shape = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    else:
        shape = [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    data = ImageFolder(found[split], v2.Compose([*shape, *finish]))
    known = sorted(child.name for child in found["train"].iterdir() if child.is_dir())
    if data.classes != known:
        raise ValueError(
            f"Expected the classes of {found['train']} in {found[split]}: "
            f"{sorted(set(known) ^ set(data.classes))[:8]} are in one of them only."
        )
    return data


def _medmnist(path: Path, split: Split, size: int | None) -> ImageData:
    if path.suffix != ".npz":
        raise ValueError(f"Expected {_KINDS}; got the file {path}.")
    prefix = "val" if split == "validation" else split
    with np.load(path) as arrays:
        missing = [key for key in (f"{prefix}_images", f"{prefix}_labels", "train_labels") if key not in arrays]
        if missing:
            raise ValueError(f"Expected a MedMNIST file with {', '.join(missing)}; {path} holds {sorted(arrays)}.")
        images, labels, all_labels = (arrays[key] for key in (f"{prefix}_images", f"{prefix}_labels", "train_labels"))
    if labels.ndim > 1 and labels.shape[1] != 1:
        raise ValueError(
            f"Expected one class for each image; {path} has {labels.shape[1]} labels for each. Use a MedMNIST set with "
            "one label, as bloodmnist, dermamnist or pathmnist."
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(
            f"Expected grey images (images, height, width) or RGB images (images, height, width, 3) in {path}, got "
            f"{images.shape}."
        )
    pixels = torch.from_numpy(images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1).copy())
    classes = [str(label) for label in range(int(all_labels.max()) + 1)]
    return ImageData(_resized(pixels, size), torch.from_numpy(labels.reshape(-1).astype(np.int64)), classes)
