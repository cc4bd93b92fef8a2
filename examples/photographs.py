"""Photographs of several labelled things: for each class the area where it is.

Two folders are known. Fruit: `git clone https://github.com/chanjianliu/fruit_recognition` (MIT), the folder that holds
`train` and `test` with boxes in Pascal VOC XML. COCO: `git clone https://github.com/lightly-ai/coco128_yolo`
(annotations CC BY 4.0), the folder that holds `images`, `object_detection` and `semantic_segmentation`; its 80 classes
are grouped into COCO's twelve groups, as 128 photographs are too few to learn more, and areas are masks. Nothing of
either is part of this project.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import normalize, pil_to_tensor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
FRUIT = ("apple", "banana", "orange")
GROUPS = {  # the first of its classes in the labels, and the first of its values in the masks
    "person": (0, 1),
    "vehicle": (1, 2),
    "outdoor": (9, 10),
    "animal": (14, 16),
    "accessory": (24, 26),
    "sports": (29, 34),
    "kitchen": (39, 44),
    "food": (46, 52),
    "furniture": (56, 62),
    "electronic": (62, 72),
    "appliance": (67, 78),
    "indoor": (73, 84),
}
THINGS = 91  # the first value of a mask that is no thing, but stuff such as grass
Split = Literal["train", "test"]
Read = tuple[Image.Image, set[int], Tensor]  # a photograph, its classes, and (classes, height, width) where each is


@dataclass(frozen=True)
class Photographs:
    """Photographs stretched to squares.

    images: (photographs, 3, side, side), normalised as ImageNet's.
    labels: (photographs, classes), booleans.
    areas: (photographs, classes, side, side), booleans, where each class is; empty where that is not known.
    classes: Their names.
    """

    images: Tensor
    labels: Tensor
    areas: Tensor
    classes: tuple[str, ...]

    def __getitem__(self, chosen: Tensor) -> "Photographs":
        """Some of the photographs."""
        return Photographs(self.images[chosen], self.labels[chosen], self.areas[chosen], self.classes)


def joined(first: Photographs, second: Photographs) -> Photographs:
    """Both splits as one."""
    parts = [torch.cat([getattr(one, key) for one in (first, second)]) for key in ("images", "labels", "areas")]
    return Photographs(*parts, first.classes)


def load_photographs(folder: str | Path, split: Split, side: int) -> Photographs:
    """The photographs of one split.

    Raises:
        FileNotFoundError: if the folder holds neither fruit nor COCO.
    """
    path = Path(folder)
    if (path / "semantic_segmentation").is_dir():
        classes, found = tuple(GROUPS), _coco(path, "train2017" if split == "train" else "val2017")
    elif (path / split).is_dir():
        classes, found = FRUIT, _fruit(path / split)
    else:
        raise FileNotFoundError(
            f"Expected a folder of fruit, with `train` and `test`, or of COCO, with `images`, `object_detection` and "
            f"`semantic_segmentation`; {path} is neither. photographs.py says where to get them."
        )
    images, labels, areas = [], [], []
    for picture, present, area in found:
        pixels = pil_to_tensor(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)).float() / 255
        images.append(normalize(pixels, MEAN, STD))
        labels.append([number in present for number in range(len(classes))])
        rows, columns = (((torch.arange(side) + 0.5) * length / side).long() for length in area.shape[1:])
        areas.append(area[:, rows][:, :, columns])
    return Photographs(torch.stack(images), torch.tensor(labels), torch.stack(areas), classes)


def _fruit(folder: Path) -> Iterator[Read]:
    for file in sorted(folder.glob("*.xml")):
        with Image.open(file.with_suffix(".jpg")) as picture:
            area = torch.zeros(len(FRUIT), picture.height, picture.width, dtype=torch.bool)
            present = set()
            for thing in ElementTree.parse(file).iter("object"):
                number = FRUIT.index(thing.findtext("name", ""))
                left, top, right, bottom = (
                    max(0, int(float(thing.findtext(f"bndbox/{edge}", "0"))))
                    for edge in ("xmin", "ymin", "xmax", "ymax")
                )
                area[number, top:bottom, left:right] = True
                present.add(number)
            yield picture, present, area


def _coco(folder: Path, split: str) -> Iterator[Read]:
    firsts, values = torch.tensor(list(GROUPS.values())).T.contiguous()
    for file in sorted((folder / "images" / split).glob("*.jpg")):
        lines = folder / "object_detection" / "labels" / split / f"{file.stem}.txt"
        ids = torch.tensor([int(line.split()[0]) for line in lines.read_text().splitlines()] if lines.exists() else [])
        present = {*(torch.bucketize(ids, firsts, right=True) - 1).tolist()}
        masked = folder / "semantic_segmentation" / "masks" / split / f"{file.stem}.png"
        with Image.open(file) as picture:
            area = torch.zeros(len(GROUPS), picture.height, picture.width, dtype=torch.bool)
            if masked.exists():
                with Image.open(masked) as mask:
                    value = torch.from_numpy(np.array(mask)).long()
                group = torch.bucketize(value, values, right=True) - 1
                area = (group == torch.arange(len(GROUPS))[:, None, None]) & (value < THINGS)
            yield picture, present, area
