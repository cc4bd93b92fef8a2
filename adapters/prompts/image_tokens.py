"""Where the image tokens of a prompt lie on the pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.overlaps import overlaps
from .answered_prompts import token_ids
from .image_layouts import WHOLE, Box, Layout
from .image_rules import Seen, layouts


@dataclass(frozen=True, eq=False)
class ImagePart:
    """One grid of an image's tokens.

    Attributes:
        positions: (h, w), where in the row of `input_ids` each token is.
        box: (x0, y0, x1, y1), which part of the image the grid covers, in fractions of its width and height; a little
            below 0 or above 1 where the outermost tokens reach into the image's padding.
    """

    positions: Tensor
    box: Box


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Where the tokens of one image lie in a prompt, and on the image.

    The image is what the image processor made of the picture: if that cut off its edges, as CLIP's does, so does the
    map. Only where the inputs have the picture's own size (`image_sizes` of LLaVA-NeXT) it is the whole picture.

    Attributes:
        numbers: The places of all its tokens in that row of `input_ids`, in order.
        parts: Its grids: one, or an overview and tiles. Tokens that lie nowhere, such as ends of rows, are in none.
    """

    numbers: Tensor
    parts: tuple[ImagePart, ...]

    def map_of(self, scores: Tensor) -> Tensor:
        """One map of the image of scores (..., tokens of the prompt): (..., h, w), on the finest of the grids.

        Scores of coarser grids are spread evenly over the area of each token and added, so that the sum of the map is
        the sum of the scores of all tokens on grids. Tokens that lie nowhere are left out.

        Example:
            >>> import torch
            >>> from adapters.prompts.image_tokens import ImagePart, ImageTokens
            >>> grid = ImagePart(torch.tensor([[1, 2], [3, 4]]), (0.0, 0.0, 1.0, 1.0))
            >>> ImageTokens(torch.arange(1, 5), (grid,)).map_of(torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 9.0]))
            tensor([[1., 2.],
                    [3., 4.]])
        """
        if len(self.parts) == 1 and self.parts[0].box == WHOLE:
            return scores[..., self.parts[0].positions.to(scores.device)]
        height = max(round(part.positions.shape[0] / (part.box[3] - part.box[1])) for part in self.parts)
        width = max(round(part.positions.shape[1] / (part.box[2] - part.box[0])) for part in self.parts)
        whole = scores.new_zeros(*scores.shape[:-1], height, width)
        for part in self.parts:
            x0, y0, x1, y1 = part.box
            rows = overlaps(part.positions.shape[0], height, y0, y1).to(scores)
            columns = overlaps(part.positions.shape[1], width, x0, x1).to(scores)
            whole = whole + rows @ scores[..., part.positions.to(scores.device)] @ columns.T
        return whole


def image_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[ImageTokens]]:
    """Where the image tokens of each prompt lie: for each sample its images, in order.

    Args:
        model: An image-text-to-text model as of transformers; only its config is read.
        inputs: What its processor returns: `input_ids` (batch, tokens), `pixel_values` and what belongs to them. Of
            models whose tiles' arrangement the processor does not return, `image_sizes` (images, 2), height and width
            of the pictures, may be added.

    Returns:
        A list for each sample, empty for a sample without images.

    Raises:
        TypeError: if `inputs` is no mapping with `input_ids`.
        ValueError: if there are images, but no image tokens, or it cannot be told how the tokens lie on them.
    """
    ids = token_ids(inputs)
    if not isinstance(inputs.get("pixel_values"), Tensor | list):
        return [[] for _ in ids]
    mask = inputs.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    token = image_token_id(model)
    places = [row.nonzero().flatten().cpu() for row in (ids == token) & real]
    if token is None or not any(map(len, places)):
        raise ValueError(
            f"There are `pixel_values`, but no image token in the prompts: `image_token_id` of the config is {token}. "
            "Give the processor the prompt with its image placeholder, such as by `apply_chat_template`."
        )
    return _placed(layouts(Seen.of(model, inputs, ids.cpu(), places)), places)


def image_token_id(model: nn.Module) -> int | None:
    """The token id that stands for a place of an image, if the config has one."""
    config = getattr(model, "config", None)
    found = getattr(config, "image_token_id", None)
    return getattr(config, "image_token_index", None) if found is None else found


def _placed(found: list[list[Layout]], places: list[Tensor]) -> list[list[ImageTokens]]:
    """Layouts of each sample's images, at the places of the sample's image tokens."""
    made: list[list[ImageTokens]] = []
    for images, numbers in zip(found, places, strict=True):
        own = numbers.split([image.count for image in images])
        made.append(
            [
                ImageTokens(part, tuple(ImagePart(part[grid], box) for grid, box in image.grids))
                for image, part in zip(images, own, strict=True)
            ]
        )
    return made
