"""Crops of white cells, red cells and platelets, with the place of the cell known.

They come from the BCCD dataset: 364 photographs of blood smears with a box around each cell, under the MIT licence. To
get it, run `git clone https://github.com/Shenggan/BCCD_Dataset`; the folder to name is `BCCD_Dataset/BCCD`, which holds
`JPEGImages` and `Annotations`. Nothing of it is part of this project.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

CLASSES = ("WBC", "RBC", "Platelets")
MEAN, STD = (0.737, 0.706, 0.734), (0.066, 0.103, 0.067)  # of the training crops
SIZE = 64
MARGIN = 0.35  # on each side of a cell, in its longer side
SHIFT = 0.25  # at most, of the crop against the cell: where all are in the middle, any map that is round finds them
SMALLEST = 8  # pixels; a narrower box is an error of annotation
RED_CELLS_PER_IMAGE = 1  # of eleven, which balances the classes
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
# Fields of view that were photographed twice: two walks over the slide and back, and some pairs.
REPEATED = {37, 38, 44, 45, 54, 55, 165, 166, 193, *range(204, 279), *range(364, 412)}
Split = Literal["train", "validation", "test"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Cells:
    """Crops of one cell each; others may be seen around it.

    images: (cells, 3, 64, 64), RGB in [0, 1].
    labels: (cells,), indices into CLASSES.
    boxes: (cells, 4), left, top, right and bottom of the cell within its crop, in pixels, as floating-point numbers.
    names: The photograph that each cell is from.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    names: tuple[str, ...]

    def mask(self) -> Tensor:
        """(cells, 1, 64, 64) booleans: the pixels whose centres are inside the box of the cell."""
        centres = torch.arange(SIZE) + 0.5
        left, top, right, bottom = (edge[:, None] for edge in self.boxes.unbind(1))
        rows = (centres >= top) & (centres < bottom)
        columns = (centres >= left) & (centres < right)
        return (rows[:, :, None] & columns[:, None])[:, None]


def load_cells(folder: str | Path, split: Split) -> Cells:
    """The cells of the photographs of one split; the splits share no photograph, and are the same at each call.

    Raises:
        FileNotFoundError: if the folder does not hold the dataset.
    """
    crops, labels, boxes, names = [], [], [], []
    for annotation in split_files(folder, split):
        pixels: npt.NDArray[np.uint8] | None = None
        random = Random(annotation.stem)
        for label, box in chosen_cells(annotation):
            if pixels is None:
                pixels = photograph(annotation)
            crop, inside = _crop(pixels, box, random)
            crops.append(crop)
            labels.append(label)
            boxes.append(inside)
            names.append(annotation.stem)
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    return Cells(images.contiguous(), torch.tensor(labels), torch.tensor(boxes), tuple(names))


def split_files(folder: str | Path, split: Split) -> list[Path]:
    """The annotation files of one split; what was photographed twice is all in "train"."""
    if split not in SHARES:
        raise ValueError(f"Expected a split of {', '.join(SHARES)}; got {split!r}.")
    files = sorted(Path(folder).glob("Annotations/*.xml"))
    if len(files) < 4 or not (Path(folder) / "JPEGImages").is_dir():
        raise FileNotFoundError(
            f"Expected the folder of the BCCD dataset with `Annotations` and `JPEGImages`, found {len(files)} "
            f"annotations in {folder}. Get it by `git clone https://github.com/Shenggan/BCCD_Dataset` and name its "
            "folder `BCCD`."
        )
    repeated = {f"BloodImage_{number:05}" for number in REPEATED}
    once = [path for path in files if path.stem not in repeated]
    Random(0).shuffle(once)
    shares = {name: round(share * len(files)) for name, share in SHARES.items() if name != "train"}
    validation, test = once[: shares["validation"]], once[-shares["test"] :]
    held = {*validation, *test}
    return sorted(
        {"train": [path for path in files if path not in held], "validation": validation, "test": test}[split]
    )


def chosen_cells(annotation: Path) -> list[tuple[int, Box]]:
    """Label and box of the cells of one photograph that are used: all white cells and platelets, and few red cells."""
    cells = annotated(annotation)
    red = [cell for cell in cells if CLASSES[cell[0]] == "RBC"]
    kept = Random(annotation.stem).sample(red, min(RED_CELLS_PER_IMAGE, len(red)))
    return [cell for cell in cells if cell in kept or CLASSES[cell[0]] != "RBC"]


def annotated(path: Path) -> list[tuple[int, Box]]:
    """Label and box of all cells of one photograph."""
    root = ElementTree.parse(path).getroot()
    width, height = (float(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    found = []
    for item in root.iter("object"):
        name = item.findtext("name", "")
        edges = [item.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        if name not in CLASSES or None in edges:
            continue
        left, top, right, bottom = (float(edge) for edge in edges)
        box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST:
            found.append((CLASSES.index(name), box))
    return found


def photograph(annotation: Path) -> npt.NDArray[np.uint8]:
    """The pixels (height, width, 3) that an annotation is of."""
    path = annotation.parent.parent / "JPEGImages" / f"{annotation.stem}.jpg"
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _crop(pixels: npt.NDArray[np.uint8], box: Box, random: Random) -> tuple[npt.NDArray[np.uint8], list[float]]:
    """A square around the box, moved at random and into the photograph, and the box within it."""
    longer = max(box[2] - box[0], box[3] - box[1])
    side = min(round(longer * (1 + 2 * MARGIN)), *pixels.shape[:2])
    x, y = (
        min(max(round((first + last - side) / 2 + random.uniform(-SHIFT, SHIFT) * longer), 0), length - side)
        for first, last, length in ((box[0], box[2], pixels.shape[1]), (box[1], box[3], pixels.shape[0]))
    )
    square = Image.fromarray(pixels[y : y + side, x : x + side]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    inside = [(edge - start) * SIZE / side for edge, start in zip(box, (x, y, x, y), strict=True)]
    return np.asarray(square), [min(max(edge, 0.0), float(SIZE)) for edge in inside]
