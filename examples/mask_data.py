"""Small pictures with masks: scenes of two handwritten digits, and fields of blood smears.

Masks of digits are their ink. Those of blood cells are drawn from the boxes of BCCD (see blood_cells.py) as ellipses,
as nobody has drawn outlines: round cells fill theirs well, others do not.
"""

from dataclasses import dataclass
from pathlib import Path

import blood_cells
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from xai_compare.digit_scenes import Scenes, make_scenes

INK, PAPER = 0.3, 10
CELLS = {"WBC": "white cell", "RBC": "red cell", "Platelets": "platelet"}
FIELD, ZOOM = (48, 64), 5  # height and width of a field in pixels, each of which is 5 x 5 pixels of the photograph
_DRAWN = ("RBC", "WBC", "Platelets")  # the last one lies on top


@dataclass(frozen=True)
class Pictures:
    """Pictures, the class of each of their places, and one thing in each to explain.

    images: (pictures, channels, height, width).
    masks: (pictures, height, width), 0 to `things`, which is what lies behind all things.
    explained: (pictures,), the class of the thing to explain.
    things: How many classes of things there are.
    """

    images: Tensor
    masks: Tensor
    explained: Tensor
    things: int

    def regions(self) -> Tensor:
        """(pictures, height, width) booleans, where the thing to explain is."""
        return self.masks == self.explained[:, None, None]


def load_pictures(data: str, split: blood_cells.Split, count: int, seed: int) -> Pictures:
    """Scenes of digits, made anew for each seed; or of BCCD, in the folder `data`, the fields of a split.

    Args:
        data: "digits", or a folder, see blood_cells.py.
        split: Pictures of different splits share no handwriting and no photograph.
        count: How many; of blood cells at most so many, chosen at random.
        seed: For random choices.
    """
    if data == "digits":
        scenes = make_scenes(count, split, seed=seed)
        return Pictures(scenes.images, digit_masks(scenes), scenes.labels[:, 0], PAPER)
    files = blood_cells.split_files(data, split)
    images, masks = (torch.cat(parts) for parts in zip(*map(fields, files), strict=True))
    things = len(CELLS)
    found = one_hot(masks.flatten(1), things + 1).sum(1)[:, :things]
    rarest = torch.tensor([blood_cells.CLASSES.index(name) for name in reversed(_DRAWN)])
    shown = found[:, rarest] >= 9  # places; a cell that is cut off leaves fewer
    kept = torch.nonzero(shown.any(1)).flatten()
    chosen = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:count]]
    return Pictures(images[chosen], masks[chosen], rarest[shown[chosen].int().argmax(1)], things)


def digit_masks(scenes: Scenes) -> Tensor:
    """(batch, height, width), the digit of each place of ink, 10 for paper."""
    found = torch.full(scenes.images[:, 0].shape, PAPER)
    for slot in range(scenes.labels.shape[1]):
        inside = scenes.mask(slot)[:, 0] & (scenes.images[:, 0] > INK)
        found = torch.where(inside, scenes.labels[:, slot, None, None], found)
    return found


def fields(annotation: Path) -> tuple[Tensor, Tensor]:
    """A photograph at a fifth of its size, cut into four fields, (4, 3, 48, 64), and their masks."""
    pixels = blood_cells.photograph(annotation)
    height, width = (2 * side for side in FIELD)
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (blood_cells.MEAN, blood_cells.STD))
    mask = ellipses(blood_cells.annotated(annotation), (height, width))
    return _cut((image - mean) / std), _cut(mask[None])[:, 0]


def ellipses(cells: list[tuple[int, blood_cells.Box]], size: tuple[int, int]) -> Tensor:
    """(height, width), the class of the ellipse in which each place lies, len(CELLS) outside of all."""
    mask = torch.full(size, len(CELLS))
    y, x = ((torch.arange(side) + 0.5) * ZOOM for side in size)
    order = [blood_cells.CLASSES.index(name) for name in _DRAWN]
    for label, (left, top, right, bottom) in sorted(cells, key=lambda cell: order.index(cell[0])):
        across = (2 * x - left - right) / (right - left)
        down = (2 * y - top - bottom) / (bottom - top)
        mask[across**2 + down[:, None] ** 2 <= 1] = label
    return mask


def _cut(whole: Tensor) -> Tensor:
    """(channels, height, width) in four parts."""
    return torch.stack([part for row in whole.chunk(2, 1) for part in row.chunk(2, 2)])


def mirrored(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """A batch, at random mirrored along each axis or not."""
    axes = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
    return images.flip(axes), masks.flip(axes)
