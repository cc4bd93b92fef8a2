"""Which layout the images of a batch of prompts have, by the config's attributes and the inputs that there are."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .image_layouts import (
    Layout,
    any_resolution,
    arrangement_by_overview,
    arrangement_of,
    one_grid,
    padded_to_square,
    tiles,
)

_QUERIES = (
    "num_query_tokens",
    "qformer_config",
    "perceiver_config",
    "latent_query_num",
    "projector_patch_to_query_dict",
)
_SHRINKING = ("downsample_ratio", "pixel_shuffle_ratio")  # of a side
_FACTORS = ("scale_factor", "spatial_merge_size", "downsample_factor", "projector_pooling_ratio")


@dataclass(frozen=True)
class Seen:
    """What is known of a batch: the configs, the inputs, the token ids and where the image tokens are."""

    config: Any
    vision: Any
    inputs: Mapping[str, Any]
    ids: Tensor
    places: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Any], ids: Tensor, places: list[Tensor]) -> "Seen":
        """With the model's configs."""
        config: Any = model.config
        return cls(config, getattr(config, "vision_config", None), inputs, ids, places)

    @property
    def counts(self) -> list[int]:
        """How many image tokens each sample has."""
        return [len(one) for one in self.places]

    @property
    def pixels(self) -> Tensor | None:
        """`pixel_values`, if they are a tensor."""
        found = self.inputs.get("pixel_values")
        return found if isinstance(found, Tensor) else None

    def sizes(self, name: str) -> list[list[int]] | None:
        """An input with some integers for each image."""
        found = self.inputs.get(name)
        return None if found is None else torch.as_tensor(found).flatten(0, -2).tolist()

    def runs(self, sample: int) -> list[Tensor]:
        """A sample's image tokens, divided where others are between them."""
        numbers = self.places[sample]
        gaps = (numbers.diff() > 1).nonzero().flatten() + 1
        return list(numbers.tensor_split(gaps)) if len(numbers) else []


def layouts(seen: Seen) -> list[list[Layout]]:
    """The layouts of each sample's images.

    Raises:
        ValueError: if no rule fits, or what it expects is not what the prompt has.
    """
    _check_kind(seen)
    for applies, rule in _RULES:
        if applies(seen):
            return _checked(rule(seen), seen)
    raise _unknown(seen, "no rule is known for these")


def _check_kind(seen: Seen) -> None:
    """Refuses models whose image tokens, if they have any, are no places of an image."""
    queries = [name for name in _QUERIES if getattr(seen.config, name, None) is not None]
    text = getattr(seen.config, "text_config", None)
    if queries:
        raise _unknown(seen, f"each of its image tokens is a query that reads the whole image (`{queries[0]}`)")
    if getattr(text, "cross_attention_layers", None):
        raise _unknown(seen, "it reads images by cross attention, and no token stands for a place of them")


def _unknown(seen: Seen, why: str) -> ValueError:
    shapes = {name: _shape(value) for name, value in seen.inputs.items()}
    return ValueError(
        f"Where the image tokens lie on the images is not known for this model: {why}. The prompts have {seen.counts} "
        f"image tokens, the inputs are {shapes}. For the scores of all tokens without maps of images, pass "
        "`images=False`."
    )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _checked(found: list[list[Layout]], seen: Seen) -> list[list[Layout]]:
    """The layouts, if they have as many tokens as the prompts, and each row's tokens follow each other."""
    expected = [[image.count for image in images] for images in found]
    if [sum(counts) for counts in expected] != seen.counts:
        raise _unknown(seen, f"their pixels would make {expected} tokens")
    for images, places in zip(found, seen.places, strict=True):
        own = places.split([image.count for image in images])
        for image, part in zip(images, own, strict=True):
            for grid, _ in image.grids:
                where = part[grid]
                steps = where[:, 0].diff()
                if bool((where.diff(dim=1) != 1).any()) or bool((steps != steps[:1]).any()):
                    raise _unknown(seen, f"a grid of {tuple(grid.shape)} tokens has other tokens between")
    return found


def _in_order(images: list[Layout], seen: Seen) -> list[list[Layout]]:
    """The images of a batch, divided among the samples by the number of their tokens."""
    found: list[list[Layout]] = [[] for _ in seen.counts]
    rest = iter(images)
    for own, count in zip(found, seen.counts, strict=True):
        while sum(image.count for image in own) < count and (image := next(rest, None)) is not None:
            own.append(image)
    left = [image.count for image in rest]
    if left:
        raise _unknown(seen, f"images that would make {left} tokens are left over")
    return found


def _pair(value: Any) -> tuple[int, int] | None:
    """(height, width) of one or two numbers."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) and len(value) == 2 else None


def _attribute(seen: Seen, names: tuple[str, ...]) -> Any:
    """The first attribute of these that the config, or that of its vision model, has."""
    both = ((config, name) for name in names for config in (seen.config, seen.vision))
    return next((found for config, name in both if (found := getattr(config, name, None)) is not None), None)


def _grids_in_inputs(seen: Seen) -> list[list[Layout]]:
    """Patches (time, height, width) of each image, of which `merge` x `merge` make a token."""
    merge = _pair(_attribute(seen, ("spatial_merge_size", "merge_kernel_size", "merge_size")))
    if merge is None:
        raise _unknown(seen, "its config has no `spatial_merge_size`")
    images = []
    for time, height, width in seen.sizes("image_grid_thw") or []:
        if time != 1 or height % merge[0] or width % merge[1]:
            raise _unknown(seen, f"an image's patches are {time} x {height} x {width}, and {merge} make a token")
        images.append(one_grid(height // merge[0], width // merge[1]))
    return _in_order(images, seen)


def _any_resolution(seen: Seen) -> list[list[Layout]]:
    """An overview, and tiles of the resolution that fits best, without padding (LLaVA-NeXT, LLaVA-OneVision)."""
    tile, patch = _attribute(seen, ("image_size",)), _attribute(seen, ("patch_size",))
    ratio = getattr(seen.config, "vision_aspect_ratio", None)
    if not isinstance(tile, int) or not isinstance(patch, int):
        raise _unknown(seen, f"its vision model's `image_size` is {tile!r}, its `patch_size` {patch!r}")
    if ratio is not None and not str(ratio).removeprefix("anyres_max_").isdigit():
        raise _unknown(seen, f"its `vision_aspect_ratio` is {ratio!r}")
    most = None if ratio is None else int(str(ratio).removeprefix("anyres_max_"))
    numbers = seen.inputs.get("batch_num_images")
    sizes = seen.sizes("image_sizes") or []
    alone = [True] * len(sizes) if numbers is None else [n == 1 for n in map(int, numbers) for _ in range(n)]
    images = [
        any_resolution((height, width), seen.config.image_grid_pinpoints, tile, tile // patch, most)
        if single
        else padded_to_square((height, width), tile // patch, ended=1)
        for (height, width), single in zip(sizes, alone, strict=True)
    ]
    return _in_order(images, seen)


def _own_sizes(seen: Seen) -> list[list[Layout]]:
    """Images of any size, padded to the largest (Pixtral, Mistral 3)."""
    patch = _pair(_attribute(seen, ("patch_size",)))
    merge = _pair(_attribute(seen, ("spatial_merge_size",))) or (1, 1)
    if patch is None:
        raise _unknown(seen, "its vision model has no `patch_size`")
    images = []
    for height, width in seen.sizes("image_sizes") or []:
        rows, columns = height // (patch[0] * merge[0]), width // (patch[1] * merge[1])
        covered = (columns * patch[1] * merge[1] / width, rows * patch[0] * merge[0] / height)
        images.append(one_grid(rows, columns, (0.0, 0.0, *covered)))
    return _in_order(images, seen)


def _are_own_sizes(seen: Seen) -> bool:
    """Are the `image_sizes` those of the pixels, without padding to the largest?"""
    sizes, pixels = seen.sizes("image_sizes"), seen.pixels
    if not sizes or _are_tiled(seen) or pixels is None or pixels.dim() != 4 or len(sizes) != len(pixels):
        return False
    return tuple(map(max, zip(*sizes, strict=True))) == tuple(pixels.shape[-2:])


def _are_tiled(seen: Seen) -> bool:
    """Does the config tell of tokens made fewer, for images of many tiles?"""
    return _attribute(seen, (*_SHRINKING, "downsample_factor")) is not None


def _check_runs(seen: Seen, count: int) -> None:
    """Refuses image tokens that are not whole images or tiles, and tiles divided by tokens of their own."""
    for sample in range(len(seen.ids)):
        runs = seen.runs(sample)
        wrong = [len(run) for run in runs if len(run) % count]
        if wrong:
            raise _unknown(seen, f"an image or tile has {count} tokens, and {wrong} follow each other")
        if _are_tiled(seen) and any(int(b[0] - a[-1]) == 2 for a, b in pairwise(runs)):
            raise _unknown(seen, "single tokens divide what may be tiles of one image")


def _tile_grid(seen: Seen) -> tuple[int, int]:
    """(rows, columns) of the tokens of one tile, or of an image of one size."""
    patch, pixels = _pair(_attribute(seen, ("patch_size",))), seen.pixels
    if patch is None or pixels is None or pixels.dim() < 4:
        raise _unknown(seen, "`pixel_values` are no stacked images, or its vision model has no `patch_size`")
    sides = [length // step for length, step in zip(pixels.shape[-2:], patch, strict=True)]
    number, shrinking = _attribute(seen, ("mm_tokens_per_image",)), _attribute(seen, _SHRINKING)
    factor = _attribute(seen, _FACTORS)
    if number is not None:
        shrinking = math.isqrt(number) / sides[0]
    elif shrinking is None:
        shrinking = 1 / (factor or 1)
    height, width = (round(side * shrinking) for side in sides)
    if not height or not width or sides[0] % height or sides[1] % width:
        raise _unknown(seen, f"{sides} patches, times {shrinking} at each side, are no whole tokens")
    return height, width


def _squares(seen: Seen) -> list[list[Layout]]:
    """Images of one size, or tiles of it and an overview, which are not divided by other tokens."""
    height, width = _tile_grid(seen)
    pixels = seen.inputs["pixel_values"].flatten(0, -4)
    with_class = getattr(seen.config, "vision_feature_select_strategy", None) == "full"
    skipped = int(with_class and sum(seen.counts) == len(pixels) * (height * width + 1))
    count = height * width + skipped
    _check_runs(seen, count)
    if sum(seen.counts) != len(pixels) * count:
        raise _unknown(seen, f"{len(pixels)} images or tiles of {count} tokens were expected")
    rest = pixels
    found: list[list[Layout]] = []
    for sample in range(len(seen.ids)):
        own: list[Layout] = []
        for run in seen.runs(sample):
            number = len(run) // count
            if number > 1 and _are_tiled(seen):
                own.append(
                    _tiled(seen, rest[:number], (height, width), sum(len(images) for images in found) + len(own))
                )
            else:
                own += [one_grid(height, width, skipped=skipped)] * number
            rest = rest[number:]
        found.append(own)
    return found


def _tiled(seen: Seen, pixels: Tensor, grid: tuple[int, int], number: int) -> Layout:
    """Tiles and an overview behind them, whose arrangement the pictures' sizes or the overview tell."""
    sizes = seen.sizes("image_sizes")
    shape = None
    if sizes is not None and number < len(sizes):
        shape = arrangement_of(len(pixels) - 1, sizes[number][1] / sizes[number][0])
    elif sizes is None:
        shape = arrangement_by_overview(pixels[:-1], pixels[-1])
    if shape is None:
        raise _unknown(
            seen,
            f"image {number} has {len(pixels) - 1} tiles and an overview, and their arrangement cannot be told; add "
            "`image_sizes` (images, 2), height and width of the pictures, to the inputs",
        )
    return tiles(*shape, *grid, overview=True)


def _divided_tiles(seen: Seen) -> list[list[Layout]]:
    """Tiles divided by tokens that say their row and column, then an overview (Idefics 3, SmolVLM)."""
    height, width = _tile_grid(seen)
    pixels = seen.inputs["pixel_values"]
    real = [int(one.flatten(1).any(1).sum()) for one in pixels]
    mask = seen.inputs.get("pixel_attention_mask")
    if mask is not None and not bool(mask[pixels.flatten(2).any(2)].all()):
        raise _unknown(seen, "a part of an image or tile is padding")
    found = []
    for sample, number in enumerate(real):
        runs = seen.runs(sample)
        if [len(run) for run in runs] != [height * width] * number:
            raise _unknown(seen, f"sample {sample} has {number} tiles of {height * width} tokens each")
        found.append([tiles(*shape, height, width, overview=True) for shape in _arrangements(seen, sample, runs)])
    return found


def _arrangements(seen: Seen, sample: int, runs: list[Tensor]) -> Iterator[tuple[int, int]]:
    """(rows, columns) of each image's tiles; (0, 0) for an image without.

    Before each tile are two tokens, before the first of a row a line break, too; before an overview is always the same
    token, and behind the last row one or two line breaks.
    """
    overview = seen.ids[sample, runs[-1][0] - 1] if runs else None
    rows: list[int] = []
    previous = None
    for run in runs:
        gap = 0 if previous is None else int(run[0] - previous[-1] - 1)
        previous = run
        if seen.ids[sample, run[0] - 1] == overview:
            if len(set(rows)) > 1 or (rows and gap not in (3, 4)):
                raise _unknown(seen, f"sample {sample} has rows of {rows} tiles, {gap} tokens before the overview")
            yield len(rows), rows[0] if rows else 0
            rows, previous = [], None
        elif not rows or gap == 3:
            rows.append(1)
        elif gap == 2:
            rows[-1] += 1
        else:
            raise _unknown(seen, f"{gap} tokens are between two tiles of sample {sample}, not 2 or 3")


_Rule = Callable[[Seen], list[list[Layout]]]
_RULES: tuple[tuple[Callable[[Seen], bool], _Rule], ...] = (
    (lambda seen: "image_grid_thw" in seen.inputs, _grids_in_inputs),
    (lambda seen: hasattr(seen.config, "image_grid_pinpoints") and "image_sizes" in seen.inputs, _any_resolution),
    (_are_own_sizes, _own_sizes),
    (
        lambda seen: hasattr(seen.config, "scale_factor") and seen.pixels is not None and seen.pixels.dim() == 5,
        _divided_tiles,
    ),
    (lambda seen: seen.pixels is not None and seen.pixels.dim() in (4, 5), _squares),
)
