"""Mosaics of four pictures of different classes: the grid pointing game, and cells that cannot count (DiFull).

After Böhle et al. (2021) and Rao et al. (2022), re-implemented from the papers. The pictures of a mosaic are shrunk to
half their size, so that any classifier can read it.
"""

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.models import evaluation_mode, output_tensor, placement_of

from .. import digit_vit
from .._data import Request, as_samples
from .._input_layout import input_layout
from .._isolation import said
from .._lineup import lineup
from .._models import PlainLogits
from .._pictures import Pictures
from .._samples import Samples
from .._seeding import seeded_for
from ..digit_scenes import load_split
from .measures import absolute_share_inside, share_inside
from .task import Conditions, Problem, Score, Task
from .training import right_first, trained

_SIDE = 24  # pixels of a cell of the bundled mosaics
_DIGIT = 16
_MOST = 512  # pictures of the user that are read
_NONE = "Mosaics need pictures, and there are none in the data."


def cell_mask(places: Tensor, height: int, width: int) -> Tensor:
    """(samples, height, width): the quarter of each image that is its cell, numbered row by row."""
    rows, columns = torch.arange(height) * 2 // height, torch.arange(width) * 2 // width
    return (rows[:, None] * 2 + columns)[None] == places.view(-1, 1, 1)


def tiled(pictures: Tensor) -> Tensor:
    """Mosaics (samples, channels, 2 h, 2 w) of pictures (samples, 4, channels, h, w)."""
    rows = torch.cat(pictures.unbind(1), -1).split(2 * pictures.shape[-1], -1)
    return torch.cat(rows, -2)


_handwriting = functools.cache(load_split)


def digit_cells(count: int, split: Any = "test") -> tuple[Tensor, Tensor]:
    """Cells (count, 4, 1, 24, 24) with a digit each, all different, and their classes, by torch's random numbers."""
    handwriting, classes = _handwriting(split)
    wanted = torch.rand(count, 10).argsort(1)[:, :4]
    cells = 0.05 * torch.randn(count, 4, 1, _SIDE, _SIDE)
    by_class = [handwriting[classes == digit] for digit in range(10)]
    corners = torch.randint(_SIDE - _DIGIT + 1, (count, 4, 2)).tolist()
    for sample in range(count):
        for place in range(4):
            pool = by_class[int(wanted[sample, place])]
            top, left = corners[sample][place]
            chosen = pool[int(torch.randint(len(pool), ()))]
            cells[sample, place, 0, top : top + _DIGIT, left : left + _DIGIT] += chosen
    return cells, wanted


def grid(conditions: Conditions) -> Problem:
    """Mosaics for the user's classifier, or of digits for the bundled one."""
    if isinstance(conditions.model, str) and conditions.model == "digits" and _is_missing(conditions.data):
        with seeded_for(conditions.seed, "arena mosaics", 0):
            cells, classes = digit_cells(conditions.samples)
        return _asked(digit_vit.load(), cells, classes)
    return _own(conditions)


def _is_missing(data: Any) -> bool:
    return isinstance(data, str) and data in ("", "digits")


def _own(conditions: Conditions) -> Problem:
    """The pictures of which the model is surest, four of different predicted classes in each mosaic."""
    if _is_missing(conditions.data):
        raise ValueError(
            "Mosaics of your own classifier need pictures: pass `data`, on the command line --data FOLDER."
        )
    settings = conditions.settings
    entries = lineup(conditions.model, settings.checkpoint, pretrained=settings.pretrained)
    if len(entries) != 1:
        raise ValueError(f"Mosaics need one classifier, got {len(entries)}: {', '.join(entries)}.")
    ((name, entry),) = entries.items()
    subject = entry.load(settings, name)
    pictures = Pictures(conditions.transform or subject.transform, input_layout(subject.model))
    given = as_samples(conditions.data, Request(pictures, subject.labels, settings.split, _MOST, settings.seed))
    images = _readable(given)
    with evaluation_mode(subject.model), torch.no_grad():
        parts = [placement_of(subject.model).moved(part) for part in images.split(settings.at_once)]
        found = [output_tensor(subject.model(part), subject.output, part).float().cpu() for part in parts]
    sure, classes = torch.cat(found).softmax(1).max(1)
    with seeded_for(conditions.seed, "arena mosaics", 0):
        chosen = _different(sure, classes, conditions.samples)
    cells = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)[chosen]
    return _asked(subject.model if len(found[0].shape) == 2 else PlainLogits(subject.model), cells, classes[chosen])


def _readable(given: Samples) -> Tensor:
    """The pictures that can be read; the others are named in a warning."""
    images, failed = [], []
    for index in range(min(len(given), _MOST)):
        try:
            images.append(given.read(index).image)
        except Exception as error:  # of any kind: files may be damaged in many ways
            failed.append(said(error))
    if not images:
        raise ValueError(f"None of the {len(failed)} pictures can be read; the first: {failed[0]}" if failed else _NONE)
    if failed:
        warnings.warn(f"{len(failed)} pictures cannot be read and are left out; the first: {failed[0]}", stacklevel=2)
    return torch.stack(images)


def _different(sure: Tensor, classes: Tensor, count: int) -> Tensor:
    """(count, 4) pictures of different classes; of each class the surer half."""
    groups = [(classes == one).nonzero()[:, 0] for one in classes.unique()]
    if len(groups) < 4:
        raise ValueError(f"Mosaics need pictures of at least 4 classes that the model predicts, got {len(groups)}.")
    pools = [group[sure[group].argsort(descending=True)][: (len(group) + 1) // 2] for group in groups]
    orders = [torch.randperm(len(pools))[:4].tolist() for _ in range(count)]
    return torch.stack([torch.stack([pools[i][torch.randint(len(pools[i]), ())] for i in order]) for order in orders])


def _asked(model: nn.Module, cells: Tensor, classes: Tensor) -> Problem:
    """Mosaics of which one cell after the other is asked for."""
    images = tiled(cells)
    places = torch.arange(len(cells)) % 4
    truth = {"mask": cell_mask(places, *images.shape[-2:])}
    return Problem(model, images, classes.gather(1, places[:, None])[:, 0], truth)


class CellwiseCNN(nn.Module):
    """A network whose convolutions never reach beyond a cell, with the logits of each cell read from this cell alone.

    Logit 10 k + c says that cell k holds the digit c. What is outside of cell k cannot change it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 64, 6, 6), nn.ReLU()),
            *(nn.Conv2d(64, 64, 1), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 40) of mosaics, (batch, 10) of single cells."""
        cells = self.features(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(cells).flatten(1)
        return logits


def _single(count: int) -> tuple[Tensor, Tensor]:
    cells, classes = digit_cells((count + 3) // 4, "train")
    return cells.flatten(0, 1)[:count], classes.flatten()[:count]


def disconnected(conditions: Conditions) -> Problem:
    """Mosaics whose cells are classified apart."""
    model = trained("cellwise-cnn", CellwiseCNN, _single, conditions, steps=300, code=(digit_cells,))
    with seeded_for(conditions.seed, "arena disconnected", 0):
        cells, classes = digit_cells(conditions.samples)
    _, accuracy = right_first(model, cells.flatten(0, 1), classes.flatten())
    asked = _asked(model, cells, classes)
    places = torch.arange(len(cells)) % 4
    return Problem(model, asked.inputs, 10 * places + asked.targets, asked.truth, accuracy)


def localised(maps: Tensor, problem: Problem) -> Tensor:
    """The share of the positive values in the cell asked for."""
    return share_inside(maps, problem.truth["mask"])


def only_inside(maps: Tensor, problem: Problem) -> Tensor:
    """The share of the absolute values in the only cell that can count."""
    return absolute_share_inside(maps, problem.truth["mask"])


TASKS = [
    Task(
        "mosaic",
        "Grid pointing game",
        "grids",
        "Four pictures of different classes in one image, of your classifier and pictures (`--model`, `--data`) or of "
        "digits. The positive values must lie on the cell asked for.",
        grid,
        {"localised": Score("positive share in the right cell", localised, chance=1 / 4)},
    ),
    Task(
        "difull",
        "Disconnected cells",
        "grids",
        "Four digits that a CNN classifies apart (DiFull): three cells cannot count, and must get 0.",
        disconnected,
        {"inside": Score("share in the only cell that counts", only_inside, 0.99, 1 / 4)},
    ),
]
