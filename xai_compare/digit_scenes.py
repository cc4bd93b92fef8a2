"""Scenes of two or three real handwritten digits on one canvas, with the place of each digit known.

The digits are scikit-learn's bundled `digits` (1,797 images of 8 x 8 pixels, from the UCI repository). They are split
into three disjoint sets before any scene is made, so a test scene shows only handwriting the model has never seen.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

CANVAS = 48
DIGIT = 16
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    images: (batch, 1, 48, 48), ink 1 on paper 0, with a little noise.
    labels: (batch, digits), the classes shown, all different within a scene.
    boxes: (batch, digits, 2), the top and left pixel of each 16 x 16 digit.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor

    def mask(self, digit: int) -> Tensor:
        """(batch, 1, 48, 48) booleans: the box of the digit with this index in every scene."""
        rows = torch.arange(CANVAS).view(1, 1, CANVAS, 1)
        columns = torch.arange(CANVAS).view(1, 1, 1, CANVAS)
        top, left = (edge.view(-1, 1, 1, 1) for edge in self.boxes[:, digit].unbind(-1))
        return (rows >= top) & (rows < top + DIGIT) & (columns >= left) & (columns < left + DIGIT)


def load_split(split: Split) -> tuple[Tensor, Tensor]:
    """The handwriting of one split: images (n, 16, 16) in [0, 1] and classes (n,)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=DIGIT, mode="bilinear", antialias=True).clamp(0, 1)[:, 0]
    classes = torch.tensor(data.target)
    train, rest = train_test_split(range(len(classes)), test_size=0.3, random_state=0, stratify=classes)
    validation, test = train_test_split(rest, test_size=0.6, random_state=0, stratify=classes[rest])
    index = {"train": train, "validation": validation, "test": test}[split]
    return images[index], classes[index]


def make_scenes(count: int, split: Split = "test", digits: int = 2, seed: int = 0, noise: float = 0.05) -> Scenes:
    """`count` scenes of `digits` different digits that do not overlap, the same ones for the same `seed`.

    Example:
        >>> from xai_compare.digit_scenes import make_scenes
        >>> make_scenes(2, digits=3).images.shape
        torch.Size([2, 1, 48, 48])
    """
    generator = torch.Generator().manual_seed(seed)
    handwriting, classes = load_split(split)
    labels = torch.rand(count, 10, generator=generator).argsort(dim=1)[:, :digits]
    boxes = _place(count, digits, generator)
    canvas = torch.zeros(count, 1, CANVAS, CANVAS)
    by_class = [handwriting[classes == c] for c in range(10)]
    for scene in range(count):
        for slot in range(digits):
            pool = by_class[labels[scene, slot]]
            drawn = pool[torch.randint(len(pool), (), generator=generator)]
            top, left = boxes[scene, slot].tolist()
            canvas[scene, 0, top : top + DIGIT, left : left + DIGIT] = drawn
    canvas += noise * torch.randn(canvas.shape, generator=generator)
    return Scenes(canvas, labels, boxes)


def _place(count: int, digits: int, generator: torch.Generator) -> Tensor:
    """(count, digits, 2) corners, redrawn until no two boxes of a scene overlap."""
    boxes = torch.zeros(count, digits, 2, dtype=torch.long)
    todo = torch.arange(count)
    while len(todo):
        drawn = torch.randint(CANVAS - DIGIT + 1, (len(todo), digits, 2), generator=generator)
        distance = (drawn[:, :, None] - drawn[:, None]).abs().amax(-1)
        distance += CANVAS * torch.eye(digits, dtype=torch.long)
        free = distance.amin(dim=(1, 2)) >= DIGIT
        boxes[todo[free]] = drawn[free]
        todo = todo[~free]
    return boxes
