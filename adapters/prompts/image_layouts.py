"""On which grids an image's tokens lie, in the order in which they follow each other in a prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Layout:
    """An image's tokens: how many, and the grids, whose entries number the image's tokens from 0."""

    count: int
    grids: tuple[tuple[Tensor, Box], ...]


def one_grid(height: int, width: int, box: Box = WHOLE, skipped: int = 0) -> Layout:
    """One grid, row by row, behind some tokens that lie nowhere, such as a class token."""
    numbers = torch.arange(height * width).view(height, width) + skipped
    return Layout(height * width + skipped, ((numbers, box),))


def tiles(rows: int, columns: int, height: int, width: int, overview: bool) -> Layout:
    """Tiles of `height` x `width` tokens, row by row, and a last one of the whole image."""
    number = rows * columns + overview
    numbers = torch.arange(number * height * width).view(number, height, width)
    boxes: list[Box] = [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return Layout(numbers.numel(), tuple(zip(numbers, boxes + [WHOLE] * overview, strict=True)))


def any_resolution(
    size: tuple[int, int], resolutions: Sequence[Sequence[int]], tile: int, side: int, most: int | None
) -> Layout:
    """An overview of `side` x `side` tokens, then the image on tiles without their padding, each row ended by a token.

    Source: Liu et al., LLaVA-NeXT (2024), "anyres" with `spatial_unpad`; Li et al., LLaVA-OneVision (2024), which
    shrinks the grid where it has more than `most` tiles of tokens.

    Args:
        size: (height, width) of the image before processing.
        resolutions: (height, width) that the tiles may make together.
        tile: Of how many pixels a tile's side is.
        side: Of how many tokens.
        most: How many tiles' tokens there are at most, None for any number.
    """
    height, width = best_resolution(size, resolutions)
    scale = min(width / size[1], height / size[0])
    if width / size[1] < height / size[0]:
        inner = (min(math.ceil(size[0] * scale), height), width)
    else:
        inner = (height, min(math.ceil(size[1] * scale), width))
    full = (height // tile * side, width // tile * side)
    cut = _padding(size, full)
    kept = [length - 2 * off for length, off in zip(full, cut, strict=True)]
    pixels = tile / side
    edges = [
        ((off * pixels - (whole - own) // 2) / own, ((length - off) * pixels - (whole - own) // 2) / own)
        for off, length, whole, own in zip(cut, full, (height, width), inner, strict=True)
    ]
    ratio = 0.0 if most is None else math.sqrt(kept[0] * kept[1] / (most * side**2))
    if ratio > 1.1:
        kept = [int(length // ratio) for length in kept]
    first = side * side
    numbers = torch.arange(kept[0] * (kept[1] + 1)).view(kept[0], kept[1] + 1) + first
    (y0, y1), (x0, x1) = edges
    overview = one_grid(side, side).grids[0]
    grids = [_on_image(numbers[:, :-1], (x0, y0, x1, y1))] if all(kept) else []  # nothing is left of a thin strip
    return Layout(first + numbers.numel(), (overview, *grids))


def padded_to_square(size: tuple[int, int], side: int, ended: int = 0) -> Layout:
    """`side` x `side` tokens of an image in the middle of a square, then some tokens that lie nowhere."""
    edges = [(-(max(size) - own) // 2 / own, (max(size) - (max(size) - own) // 2) / own) for own in size]
    (y0, y1), (x0, x1) = edges
    return Layout(side * side + ended, (_on_image(torch.arange(side * side).view(side, side), (x0, y0, x1, y1)),))


def _on_image(numbers: Tensor, box: Box) -> tuple[Tensor, Box]:
    """A grid and its box without the rows and columns that show padding only."""
    (x0, y0, x1, y1), (height, width) = box, numbers.shape
    rows = [y0 + (y1 - y0) * k / height for k in range(height + 1)]
    columns = [x0 + (x1 - x0) * k / width for k in range(width + 1)]
    top, bottom = _inner(rows)
    left, right = _inner(columns)
    return numbers[top:bottom, left:right], (columns[left], rows[top], columns[right], rows[bottom])


def _inner(edges: list[float]) -> tuple[int, int]:
    """From which edge to which the cells have a part between 0 and 1."""
    tiny = 1e-9
    return sum(edge <= tiny for edge in edges) - 1 if edges[0] <= 0 else 0, next(
        (k for k, edge in enumerate(edges) if edge >= 1 - tiny), len(edges) - 1
    )


def best_resolution(size: tuple[int, int], resolutions: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The resolution in which most of the image's pixels are kept, and least is padding."""

    def worth(resolution: Sequence[int]) -> tuple[int, int]:
        height, width = resolution
        scale = min(width / size[1], height / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - height * width

    height, width = max(resolutions, key=worth)
    return int(height), int(width)


def _padding(size: tuple[int, int], full: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of tokens of the padded image are cut off at each side."""
    if size[1] / size[0] > full[1] / full[0]:
        return (full[0] - int(round(size[0] * (full[1] / size[1]), 7))) // 2, 0
    return 0, (full[1] - int(round(size[1] * (full[0] / size[0]), 7))) // 2


def arrangement_of(number: int, aspect: float) -> tuple[int, int] | None:
    """(rows, columns) of `number` tiles, the closest to an image's width / height; None where two are as close."""
    found = sorted((abs(aspect - number / rows / rows), rows) for rows in range(1, number + 1) if number % rows == 0)
    if len(found) > 1 and math.isclose(found[0][0], found[1][0]):
        return None
    return found[0][1], number // found[0][1]


def arrangement_by_overview(pieces: Tensor, overview: Tensor) -> tuple[int, int] | None:
    """(rows, columns) in which tiles (tiles, channels, height, width) make the picture that the overview shows.

    None where no arrangement is much closer than the others, as for pictures of one colour.
    """
    number, (height, width) = len(pieces), overview.shape[-2:]
    found: list[tuple[float, int]] = []
    for rows in (rows for rows in range(1, number + 1) if number % rows == 0):
        columns = number // rows
        joined = pieces.float().unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
        joined = joined.reshape(pieces.shape[1], rows * height, columns * width)
        small = interpolate(joined[None], (height, width), mode="bilinear", antialias=True)[0]
        found.append((float((small - overview.float()).square().mean()), rows))
    found.sort()
    spread = float(overview.float().var(dim=(-2, -1)).mean())
    clear = found[0][0] < 0.1 * spread and (len(found) < 2 or found[0][0] < 0.25 * found[1][0])
    return (found[0][1], number // found[0][1]) if clear else None
