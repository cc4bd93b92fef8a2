"""Where the image tokens of a prompt lie on its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .answered_prompts import token_ids
from .image_layouts import UnknownLayoutError, layouts_of


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image in a prompt, and where they lie on the image as the processor made it.

    Attributes:
        numbers: (tokens,), their places in that row of `input_ids`.
        grids: Each (h, w) places in that row, over the whole image: the finest grid first, then overviews.
    """

    numbers: Tensor
    grids: tuple[Tensor, ...]

    def map_of(self, scores: Tensor) -> Tensor:
        """The scores of a prompt's tokens as one map of the image.

        On the finest grid. An overview's scores are spread evenly over the area that each of its tokens stands for, so
        that the sum of the map is that of the scores of all tokens that lie on the image. Tokens that end a row or
        stand for no place are left out.

        Args:
            scores: (..., tokens of the prompt).

        Returns:
            (..., h, w).
        """
        height, width = self.grids[0].shape
        total = scores[..., self.grids[0].to(scores.device)]
        for grid in self.grids[1:]:
            down, across = (_spread(a, b, scores) for a, b in zip(grid.shape, (height, width), strict=True))
            total = total + down @ scores[..., grid.to(scores.device)] @ across.mT
        return total

    def boxes(self, height: int, width: int) -> Tensor:
        """The pixels of each place of the map, on an image of this size: (h, w, 4) left, top, right, bottom."""
        h, w = self.grids[0].shape
        top, left = torch.arange(h) * height / h, torch.arange(w) * width / w
        y, x = torch.meshgrid(top, left, indexing="ij")
        return torch.stack([x, y, x + width / w, y + height / h], -1)


def _spread(coarse: int, fine: int, like: Tensor) -> Tensor:
    """(fine, coarse), which part of each coarse interval lies in each fine one of the same length."""
    edges = torch.arange(fine + 1, dtype=like.dtype, device=like.device) * coarse / fine
    cells = torch.arange(coarse, dtype=like.dtype, device=like.device)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return overlap.clamp(min=0)


def image_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[ImageTokens]]:
    """The image tokens of each prompt of a batch, image by image; none without `pixel_values`.

    Args:
        model: A model of transformers that reads images and texts.
        inputs: What its processor returned.

    Raises:
        ValueError: if the prompts have no image tokens, or it cannot be told where they lie.
    """
    ids = token_ids(inputs)
    if not isinstance(inputs.get("pixel_values"), Tensor):
        return [[] for _ in ids]
    config, token = model.config, image_token_id(model)
    rows = [(row == token).nonzero().flatten().tolist() for row in ids] if token is not None else []
    seen = {name: tuple(x.shape) for name, x in inputs.items() if isinstance(x, Tensor)}
    if not any(rows):
        raise ValueError(
            f"The inputs have images, but `input_ids` has no image token (id {token}): pass a prompt with the image's "
            f"placeholder to the processor. Got {seen}. With `images=False` only the tokens are scored."
        )
    try:
        layouts = layouts_of(config, inputs, rows)
    except UnknownLayoutError as error:
        raise ValueError(
            f"{error} Got {seen}, with {[len(row) for row in rows]} image tokens (id {token}). With `images=False` "
            "the tokens are scored without maps of images."
        ) from error
    found = []
    for row, own in zip(rows, layouts, strict=True):
        numbers, places = [], torch.tensor(row)
        for layout in own:
            mine, places = places[: layout.count], places[layout.count :]
            numbers.append(ImageTokens(mine, tuple(mine[grid] for grid in layout.grids)))
        found.append(numbers)
    return found


def image_token_id(model: nn.Module) -> int | None:
    """The token id that stands for places of an image, if the model's config has one."""
    found = (getattr(model.config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((value for value in found if isinstance(value, int)), None)
