"""Scenes of handwritten digits: which digit speaks for a class, and what changes if one is removed."""

import torch
from torch import Tensor

from adapters.maps_on_grid import spearman

from .. import digit_vit
from ..digit_scenes import CANVAS, DIGIT, Scenes, make_scenes
from .measures import share_inside
from .task import Conditions, Problem, Score, Task

_PARTS = 3


def scenes(conditions: Conditions) -> Problem:
    """Scenes of two digits, of which one is asked for."""
    made = make_scenes(conditions.samples, seed=conditions.seed)
    masks = torch.stack([made.mask(0)[:, 0], made.mask(1)[:, 0]], 1)
    model = digit_vit.load()
    accuracy = digit_vit.top_digits_found(model, make_scenes(500, seed=conditions.seed)).float().mean()
    return Problem(model, made.images, made.labels[:, 0], {"masks": masks}, float(accuracy))


def which(maps: Tensor, problem: Problem) -> Tensor:
    """Whether more is on the digit asked for than on the other one."""
    inside = (maps[:, None] * problem.truth["masks"]).sum((2, 3))
    return ((inside[:, 0] > inside[:, 1]).double() + (inside[:, 0] == inside[:, 1]).double() / 2).float()


def inside(maps: Tensor, problem: Problem) -> Tensor:
    """The share of the positive values on the digit asked for."""
    return share_inside(maps, problem.truth["masks"][:, 0])


def without(made: Scenes, digit: int) -> Tensor:
    """The images with paper in place of a digit: the mean of the noise, 0."""
    return made.images.masked_fill(made.mask(digit), 0.0)


@torch.no_grad()
def parts(conditions: Conditions) -> Problem:
    """Scenes of three digits, and what the logit loses where each is removed."""
    made = make_scenes(conditions.samples, digits=_PARTS, seed=conditions.seed)
    model, target = digit_vit.load(), made.labels[:, :1]
    whole = model(made.images).gather(1, target)
    changes = [whole - model(without(made, digit)).gather(1, target) for digit in range(_PARTS)]
    masks = torch.stack([made.mask(digit)[:, 0] for digit in range(_PARTS)], 1)
    return Problem(model, made.images, target[:, 0], {"masks": masks, "changes": torch.cat(changes, 1)})


def agreement(maps: Tensor, problem: Problem) -> Tensor:
    """Spearman's correlation of the sums on the digits with the changes of the logit, from 0 (-1) to 1."""
    sums = (maps[:, None] * problem.truth["masks"]).sum((2, 3))
    return (1 + spearman(sums, problem.truth["changes"])) / 2


TASKS = [
    Task(
        "digits",
        "Which digit",
        "scenes",
        "Scenes of two handwritten digits and the bundled ViT. More of the map must lie on the digit asked for than on "
        "the other one.",
        scenes,
        {
            "which": Score("more on the right digit", which, chance=1 / 2),
            "inside": Score("positive share on the digit", inside, chance=(DIGIT / CANVAS) ** 2),
        },
    ),
    Task(
        "removed-part",
        "A removed digit",
        "scenes",
        "Scenes of three digits. The sums of the map on the digits are ranked as what the logit loses where each is "
        "removed.",
        parts,
        {"agreement": Score("(1 + rank correlation with the true change) / 2", agreement, chance=1 / 2)},
    ),
]
