"""How a model's image tokens lie on its images, by what its config and the processor's tensors say.

A layout names, for one image, how many tokens it has in the prompt and which of them lie on a grid over the whole
image: grids of numbers of the image's own tokens, row after row, the finest first. Each rule is tried by the attributes
and tensors that it needs, never by the name of a class.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = list[int]  # the numbers of the image tokens of one prompt


@dataclass(frozen=True)
class Layout:
    """One image's tokens.

    Attributes:
        count: How many there are.
        grids: Each (h, w) numbers from 0 on, which together cover the image once more: a finer one and an overview.
    """

    count: int
    grids: tuple[Tensor, ...]


class UnknownLayoutError(ValueError):
    """It cannot be told where an image's tokens lie."""


def layouts_of(config: Any, inputs: Mapping[str, Any], rows: Sequence[Row]) -> list[list[Layout]]:
    """The layouts of the images of each prompt.

    Args:
        config: The model's.
        inputs: What the processor returned.
        rows: The numbers of the image tokens of each prompt.

    Raises:
        UnknownLayoutError: if no rule fits, or what it says is not what the prompts have.
    """
    for name in ("perceiver_config", "qformer_config", "num_query_tokens", "query_length"):
        if getattr(config, name, None) is not None:
            raise UnknownLayoutError(
                f"This model has its images read by queries of their own (`{name}` in its config): its image tokens "
                "lie on no part of an image."
            )
    pixels = inputs["pixel_values"]
    if isinstance(inputs.get("image_grid_thw"), Tensor):
        return _dealt(rows, _merged_grids(config, inputs["image_grid_thw"]))
    if getattr(config, "image_grid_pinpoints", None) and isinstance(inputs.get("image_sizes"), Tensor):
        return _dealt(rows, _any_resolution(config, pixels, inputs["image_sizes"]))
    if isinstance(pixels, Tensor) and pixels.dim() == 5 and getattr(config, "scale_factor", None):
        return [_tiled(config, pixels, inputs["input_ids"][row].tolist(), own) for row, own in enumerate(rows)]
    if isinstance(inputs.get("image_sizes"), Tensor) and getattr(config, "spatial_merge_size", None):
        step = _vision(config, "patch_size") * config.spatial_merge_size
        return _dealt(rows, [_whole(h // step, w // step) for h, w in inputs["image_sizes"].tolist()])
    if isinstance(pixels, Tensor) and pixels.dim() in (4, 5):
        images = pixels.flatten(0, -4)
        return _dealt(rows, [_square(config, images)] * len(images))
    raise UnknownLayoutError("No rule is known for the tensors that belong to this model's images.")


def _dealt(rows: Sequence[Row], layouts: Sequence[Layout]) -> list[list[Layout]]:
    """Images in the order of the batch, given to the prompts whose tokens they fill."""
    found, waiting = [], list(layouts)
    for number, row in enumerate(rows):
        own, missing = [], len(row)
        while missing > 0 and waiting:
            own.append(waiting.pop(0))
            missing -= own[-1].count
        if missing:
            raise UnknownLayoutError(
                f"Prompt {number} has {len(row)} image tokens, but the images in order have "
                f"{[layout.count for layout in layouts]}."
            )
        found.append(own)
    if waiting:
        raise UnknownLayoutError(f"The prompts have no tokens for {len(waiting)} of {len(layouts)} images.")
    return found


def _whole(height: int, width: int, first: int = 0, more: int = 0) -> Layout:
    """A grid, row after row, with tokens in front of it that lie nowhere."""
    grid = torch.arange(height * width).view(height, width) + first
    return Layout(first + height * width + more, (grid,))


def _vision(config: Any, name: str) -> int:
    value = getattr(getattr(config, "vision_config", config), name, None)
    value = value[0] if isinstance(value, list | tuple) else value
    if not isinstance(value, int):
        raise UnknownLayoutError(f"The config of this model's vision part has no `{name}`.")
    return value


def _merged_grids(config: Any, sizes: Tensor) -> list[Layout]:
    """Patches that are merged in squares, of images of any size (Qwen2-VL and its followers)."""
    merge = getattr(config.vision_config, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", 1)
    if bool((sizes[:, 0] != 1).any()):
        raise UnknownLayoutError(f"Images of several frames, `image_grid_thw` {sizes.tolist()}, lie on no one grid.")
    return [_whole(h // merge, w // merge) for _, h, w in sizes.tolist()]


def _square(config: Any, images: Tensor) -> Layout:
    """A square grid for each image, perhaps behind a class token: LLaVA, PaliGemma, Gemma 3."""
    patch = _vision(config, "patch_size")
    height, width = images.shape[-2] // patch, images.shape[-1] // patch
    for name in ("mm_tokens_per_image", "image_seq_length"):
        count = getattr(config, name, None)
        side = math.isqrt(count) if isinstance(count, int) else 0
        if side and side**2 == count and height == width and count < height * width and height % side == 0:
            return _whole(side, side)
    first = 1 if getattr(config, "vision_feature_select_strategy", "default") == "full" else 0
    return _whole(height, width, first)


def _tiled(config: Any, pixels: Tensor, ids: list[int], row: Row) -> list[Layout]:
    """Tiles of an image, each a square grid, in rows, and the whole image after them (Idefics3, SmolVLM).

    Each tile's tokens follow one another. In front of the whole image stands the same token for all images; a new row
    begins where more tokens lie between two tiles.
    """
    side = pixels.shape[-1] // _vision(config, "patch_size") // config.scale_factor
    runs = [row[start : start + side**2] for start in range(0, len(row), side**2)]
    if any(run[-1] - run[0] != side**2 - 1 for run in runs):
        raise UnknownLayoutError(f"Expected tiles of {side**2} image tokens that follow one another, got {len(row)}.")
    found: list[Layout] = []
    start = 0
    for number, run in enumerate(runs):
        if ids[run[0] - 1] == ids[runs[-1][0] - 1]:
            found.append(_tiles(runs[start : number + 1], side))
            start = number + 1
    return found


def _tiles(runs: list[Row], side: int) -> Layout:
    """Of one image: its tiles, and the whole image last."""
    overview = torch.arange(side**2).view(side, side) + (len(runs) - 1) * side**2
    if len(runs) == 1:
        return Layout(side**2, (overview,))
    gaps = [after[0] - before[-1] for before, after in itertools.pairwise(runs[:-1])]
    breaks = [number + 1 for number, gap in enumerate(gaps) if gap > min(gaps)]
    edges = [0, *breaks, len(runs) - 1]
    widths = {after - before for before, after in itertools.pairwise(edges)}
    if len(widths) != 1:
        raise UnknownLayoutError(f"Expected rows of equally many tiles, got rows that begin at tiles {edges[:-1]}.")
    columns = widths.pop()
    tiles = torch.arange((len(runs) - 1) * side**2).view(-1, columns, side, side)
    return Layout(len(runs) * side**2, (tiles.transpose(1, 2).reshape(-1, columns * side), overview))


def _any_resolution(config: Any, pixels: Tensor, sizes: Tensor) -> list[Layout]:
    """An overview, then tiles without their padding and with a token at the end of each row (LLaVA-NeXT, OneVision)."""
    size = _vision(config, "image_size")
    side = size // _vision(config, "patch_size")
    first = 1 if getattr(config, "vision_feature_select_strategy", "default") == "full" else 0
    if first:
        raise UnknownLayoutError("Class tokens of tiles lie between patches; only select strategy 'default' is read.")
    aspect = str(getattr(config, "vision_aspect_ratio", ""))
    most = int(aspect.rpartition("_")[2]) if aspect.startswith("anyres_max_") else None
    found = []
    for image, (height, width) in enumerate(sizes.tolist()):
        overview = torch.arange(side**2).view(side, side)
        if pixels.dim() == 5 and len(pixels[image]) == 1:
            found.append(Layout(side**2 + 1, (overview,)))
            continue
        best = _best_resolution(height, width, config.image_grid_pinpoints)
        rows, columns = _unpadded(height, width, best[0] // size * side, best[1] // size * side)
        ratio = 0.0 if most is None else math.sqrt(rows * columns / (most * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        fine = torch.arange(rows * (columns + 1)).view(rows, columns + 1)[:, :-1] + side**2
        found.append(Layout(side**2 + rows * (columns + 1), (fine, overview)))
    return found


def _best_resolution(height: int, width: int, choices: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The one that keeps most of an image, and of these the one that wastes least."""

    def kept(choice: Sequence[int]) -> tuple[int, int]:
        scale = min(choice[1] / width, choice[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - choice[0] * choice[1]

    best = max(choices, key=kept)
    return best[0], best[1]


def _unpadded(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """A grid over an image that was padded, without the places that are padding."""
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return rows - 2 * padding, columns
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return rows, columns - 2 * padding
