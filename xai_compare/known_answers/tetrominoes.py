"""Images of tetrominoes after XAI-TRIS (Clark et al. 2023), re-implemented from the paper's definitions.

Four ways to tell two classes apart, in white or correlated noise; each pixel that carries the class is known:

- linear: one tetromino, always in the same place, is added; a T for class 0 and an L for class 1.
- multiplicative: the noise is multiplied by one less the tetromino.
- rigid: the tetromino is moved and turned by quarter turns.
- xor: both tetrominoes, each added or subtracted; the class is whether their signs differ.

In correlated noise, neighbours of the tetromino tell what noise lies on it: suppressors, which a model may read and
which have no relation to the class.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .._seeding import seeded_for
from .measures import cells, precision, transported
from .task import Conditions, Problem, Score, Task
from .training import right_first, trained

Kind = Literal["linear", "multiplicative", "rigid", "xor"]
Noise = Literal["white", "correlated"]
GRID, SCALE = 8, 4  # squares on a side, and pixels on a side of each
SIDE = GRID * SCALE
SHAPES = {
    "T": torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]),
    "L": torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]),
}
SIGNAL: dict[Kind, float] = {"linear": 0.25, "multiplicative": 0.7, "rigid": 0.55, "xor": 0.35}
_CORRELATION = 3.0  # pixels: the standard deviation of the blur of correlated noise
STEPS = {"cnn": 150, "vit": 300}


def pattern(shape: str, top: int, left: int, turns: int = 0) -> Tensor:
    """A tetromino on the grid of 8 x 8 squares."""
    turned = torch.rot90(SHAPES[shape], turns)
    grid = torch.zeros(GRID, GRID)
    grid[top : top + turned.shape[0], left : left + turned.shape[1]] = turned
    return grid


_FIXED = {"T": pattern("T", 1, 1), "L": pattern("L", 4, 5)}


def draw(count: int, kind: Kind, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Images (count, 1, 32, 32), classes, and masks (count, 8, 8), by torch's random numbers."""
    classes = torch.randint(2, (count,))
    signs = torch.ones(count)
    if kind == "rigid":
        signal = torch.stack([_somewhere("TL"[cls]) for cls in classes.tolist()])
        masks = signal > 0
    elif kind == "xor":
        signs = torch.randint(2, (count,)) * 2.0 - 1
        second = signs * (1 - 2.0 * classes)
        signal = signs.view(-1, 1, 1) * _FIXED["T"] + second.view(-1, 1, 1) * _FIXED["L"]
        masks = signal != 0
    else:
        signal = torch.stack([_FIXED["T"], _FIXED["L"]])[classes]
        masks = ((_FIXED["T"] + _FIXED["L"]) > 0).expand(count, -1, -1)  # the absence of either tells the class, too
    large = F.interpolate(signal[:, None], scale_factor=SCALE)
    background = _noise(count, noise)
    alpha = SIGNAL[kind]
    if kind == "multiplicative":
        images = (1 - alpha * large) * background
    else:
        images = alpha * large / _norm(large) + (1 - alpha) * background / _norm(background)
    return images / images.flatten(1).abs().amax(1).view(-1, 1, 1, 1), classes, masks


def _norm(images: Tensor) -> Tensor:
    sizes: Tensor = images.flatten(1).norm(dim=1)
    return sizes.mean()


def _somewhere(shape: str) -> Tensor:
    turns = int(torch.randint(4, ()))
    rows, columns = torch.rot90(SHAPES[shape], turns).shape
    top, left = (int(torch.randint(GRID - side + 1, ())) for side in (rows, columns))
    return pattern(shape, top, left, turns)


def _noise(count: int, noise: Noise) -> Tensor:
    white = torch.randn(count, 1, SIDE, SIDE)
    if noise == "white":
        return white
    return torch.from_numpy(gaussian_filter(white.numpy(), (0, 0, _CORRELATION, _CORRELATION)))


def cnn() -> nn.Module:
    """A convolutional network of three layers, pooled, with a classifier of two layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)),
    )


def vit() -> nn.Module:
    """A vision transformer of two blocks whose patches are the squares of the grid."""
    return VisionTransformer(
        img_size=SIDE, patch_size=SCALE, in_chans=1, num_classes=2, embed_dim=48, depth=2, num_heads=3
    )


def problem(conditions: Conditions, kind: Kind, noise: Noise, network: str) -> Problem:
    """The images that the model answers rightly; all of them where these do not suffice."""

    def batch(count: int) -> tuple[Tensor, Tensor]:
        images, classes, _ = draw(count, kind, noise)
        return images, classes

    build: Callable[[], nn.Module] = {"cnn": cnn, "vit": vit}[network]
    code = (draw, pattern, SHAPES, SIGNAL, _CORRELATION, kind, noise)
    model = trained(f"{kind}-{noise}-{network}", build, batch, conditions, steps=STEPS[network], code=code)
    with seeded_for(conditions.seed, "arena test", 0):
        x, y, masks = draw(max(512, conditions.samples), kind, noise)
    order, accuracy = right_first(model, x, y)
    order = order[: conditions.samples]
    return Problem(model, x[order], y[order], {"masks": masks[order]}, accuracy)


def at_the_mask(maps: Tensor, given: Problem) -> Tensor:
    """The precision at the mask's size, of pixels."""
    masks = F.interpolate(given.truth["masks"][:, None].float(), scale_factor=SCALE)[:, 0].bool()
    return precision(maps, masks)


def moved(maps: Tensor, given: Problem) -> Tensor:
    """The earth mover's distance on the squares, of absolute values."""
    return transported(cells(maps.abs(), SCALE), given.truth["masks"])


_ABOUT = {
    "linear": "A T or an L in its place, added to noise",
    "multiplicative": "Noise multiplied by one less a T or an L in its place",
    "rigid": "A T or an L, moved and turned, added to noise",
    "xor": "A T and an L, each added or subtracted; the class is whether their signs differ",
}
_TITLES = {"xor": "XOR", "cnn": "CNN", "vit": "ViT"}
TASKS = [
    Task(
        f"tetromino-{kind}-{noise}-{network}",
        f"{_TITLES.get(kind, kind.capitalize())}, {noise} noise, {_TITLES[network]}",
        f"tetrominoes-{network}",
        f"{_ABOUT[kind]} ({noise}). The pixels that carry the class are known.",
        functools.partial(problem, kind=kind, noise=noise, network=network),
        {
            "precision": Score(
                "precision at the mask's size", at_the_mask, chance=(4 if kind == "rigid" else 8) / GRID**2
            ),
            "emd": Score("1 - earth mover's distance", moved),
        },
    )
    for network in STEPS
    for kind in SIGNAL
    for noise in ("white", "correlated")
]
