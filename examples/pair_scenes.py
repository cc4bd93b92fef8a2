"""Scenes of two things side by side, each of another kind, with the box of each known.

Things are crops of fruit from photographs with boxes (Pascal VOC XML), or scikit-learn's handwritten digits. To get the
photographs, run `git clone https://github.com/chanjianliu/fruit_recognition` (MIT licence) and name the folder that
holds `train` and `test`. Things of the splits are of different photographs. Nothing of it is part of this project.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from xai_compare.digit_scenes import load_split

SMALLEST, LARGEST = 0.25, 0.44  # of the scene's side, the longer side of a thing
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Split = Literal["train", "test"]
Things = dict[str, list[Tensor]]  # of each kind, pictures (3, height, width) in [0, 1]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class PairScenes:
    """Scenes of one thing on the left and one, of another kind, on the right.

    images: (scenes, 3, side, side), RGB from 0 to 255, as bytes.
    labels: (scenes, 2), the number in `kinds` of the left thing and of the right one.
    boxes: (scenes, 2, 4), left, top, right and bottom of both, as parts of the side, from 0 to 1.
    kinds: The word for each kind.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    kinds: tuple[str, ...]

    def words(self, side: int) -> list[str]:
        """What is on the left (0) or on the right (1) of each scene."""
        return [self.kinds[int(label)] for label in self.labels[:, side]]

    def sentences(self) -> list[str]:
        """Such as "an apple left of a banana"."""
        return [f"{article(a)} {a} left of {article(b)} {b}" for a, b in zip(self.words(0), self.words(1), strict=True)]


def article(word: str) -> str:
    """Before a word."""
    return "an" if word[0] in "aeiou" and word != "one" else "a"


def make_scenes(things: Things, count: int, seed: int, side: int = 224) -> PairScenes:
    """Scenes of two kinds, drawn with equal chances, at random sizes and heights on a plain ground of random colour.

    Raises:
        ValueError: if there are fewer than two kinds.
    """
    kinds = tuple(things)
    if len(kinds) < 2:
        raise ValueError(f"Expected things of two kinds at least, to ask which is on the left; got {list(kinds)}.")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, len(kinds), generator=generator).argsort(1)[:, :2]
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    boxes = torch.empty(count, 2, 4)
    for scene in range(count):
        ground = torch.rand(3, 1, 1, generator=generator).expand(3, side, side).clone()
        ground += 0.03 * torch.randn(ground.shape, generator=generator)
        for half in (0, 1):
            choice = things[kinds[labels[scene, half]]]
            thing = choice[int(torch.randint(len(choice), (), generator=generator))]
            left, top, right, bottom = _place(thing, half, side, generator)
            size = (bottom - top, right - left)
            scaled = F.interpolate(thing[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
            ground[:, top:bottom, left:right] = scaled
            boxes[scene, half] = torch.tensor([left, top, right, bottom]) / side
        images[scene] = (ground.clamp(0, 1) * 255).round().byte()
    return PairScenes(images, labels, boxes, kinds)


def _place(thing: Tensor, half: int, side: int, generator: torch.Generator) -> Box:
    """Where a thing lies in its half of the scene."""
    height, width = thing.shape[-2:]
    drawn = torch.rand(3, generator=generator).tolist()
    scale = side * (SMALLEST + drawn[0] * (LARGEST - SMALLEST)) / max(height, width)
    height, width = max(1, round(scale * height)), max(1, round(scale * width))
    left = half * (side // 2) + round(drawn[1] * (side // 2 - width))
    top = round(drawn[2] * (side - height))
    return left, top, left + width, top + height


def load_things(data: str, split: Split) -> Things:
    """Things of the training or test photographs of a folder, or "digits".

    Raises:
        FileNotFoundError: if the folder has no photographs with boxes.
    """
    if data == "digits":
        images, classes = load_split(split)
        return {word: [*1 - images[classes == digit, None].expand(-1, 3, -1, -1)] for digit, word in enumerate(DIGITS)}
    files = sorted((Path(data) / split).glob("*.xml"))
    if not files:
        raise FileNotFoundError(
            f"Expected photographs with boxes (*.jpg and *.xml) in {Path(data) / split}, found none. Get them by "
            "`git clone https://github.com/chanjianliu/fruit_recognition`, or give --data digits."
        )
    things: Things = {}
    for file in files:
        for name, crop in crops(file):
            things.setdefault(name, []).append(crop)
    return dict(sorted(things.items()))


def crops(annotation: Path) -> list[tuple[str, Tensor]]:
    """The things in one photograph; one whose box meets a box of another kind is left out, as both would be seen."""
    found = []
    for thing in ElementTree.parse(annotation).iter("object"):
        left, top, right, bottom = (int(float(thing.findtext(f"bndbox/{edge}", "0"))) for edge in _EDGES)
        found.append((thing.findtext("name", ""), (left, top, right, bottom)))
    alone = [(name, box) for name, box in found if not any(name != other and _meet(box, b) for other, b in found)]
    with Image.open(annotation.with_suffix(".jpg")) as photograph:
        pixels = pil_to_tensor(photograph.convert("RGB")).float() / 255
    cut = [(name, pixels[:, max(0, top) : bottom, max(0, left) : right]) for name, (left, top, right, bottom) in alone]
    return [(name, crop) for name, crop in cut if min(crop.shape[-2:]) >= 16]  # a narrower one is an error


_EDGES = ("xmin", "ymin", "xmax", "ymax")


def _meet(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
