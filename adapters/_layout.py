"""How a model's tokens lie on its input: which are prefix tokens, and on what grid the patches lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ._site import TokenAnatomy

_MOST_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class TokenLayout:
    """The axis of the channels, the number of prefix tokens, and the patch grid; no grid for sequences."""

    channels: int = -1
    prefix: int = 0
    grid: tuple[int, int] | None = None

    def to_maps(self, scores: Tensor) -> Tensor:
        """Scores of all tokens (..., tokens) as maps of the patches (..., height, width); sequences as they are."""
        return scores if self.grid is None else scores[..., self.prefix :].unflatten(-1, self.grid)


def token_layout(
    tokens: Tensor, image_size: tuple[int, int] | None, anatomy: TokenAnatomy | None, module: nn.Module
) -> TokenLayout:
    """The layout of tokens captured at a module.

    Args:
        tokens: (batch, tokens, channels), or a feature map (batch, channels, height, width), or the same with channels
            last, which is told by the module being a norm over the last axis.
        image_size: Height and width of the input in pixels; None if the input is not an image.
        anatomy: What is known about the model, if it is known.
        module: The module the tokens were captured at.

    Raises:
        ValueError: if the tokens do not fit the image.
    """
    if tokens.dim() == 4:
        if _channels_last(tokens, module):
            return TokenLayout(channels=-1, grid=(tokens.shape[1], tokens.shape[2]))
        return TokenLayout(channels=1, grid=(tokens.shape[2], tokens.shape[3]))
    if tokens.dim() != 3:
        raise ValueError(
            f"Expected the layer's tokens as (batch, tokens, channels) or (batch, channels, height, width), got shape "
            f"{tuple(tokens.shape)}. Pass another layer."
        )
    if image_size is None:
        return TokenLayout()
    count = tokens.shape[1]
    if anatomy is None or not anatomy.reads_images:
        prefix, grid = fit_grid(count, image_size)
        return TokenLayout(prefix=prefix, grid=grid)
    return TokenLayout(prefix=anatomy.prefix, grid=known_grid(count, anatomy, image_size))


def known_grid(count: int, anatomy: TokenAnatomy, image_size: tuple[int, int]) -> tuple[int, int]:
    """The patch grid of a known model, checked against the number of tokens (models may round sizes up or down)."""
    if anatomy.patch is None:
        raise ValueError(f"{anatomy.family} does not read images.")
    for rounded in (math.floor, math.ceil):
        height, width = (rounded(size / patch) for size, patch in zip(image_size, anatomy.patch, strict=True))
        if anatomy.prefix + height * width == count:
            return height, width
    height, width = (size // patch for size, patch in zip(image_size, anatomy.patch, strict=True))
    raise ValueError(
        f"The layer holds {count} tokens, but {anatomy.family} with {anatomy.prefix} prefix tokens and a {height} x "
        f"{width} grid of {anatomy.patch} patches (image {image_size[0]} x {image_size[1]}) has "
        f"{anatomy.prefix + height * width}. Were tokens pruned or merged? Ask for `return_tokens=True`."
    )


def fit_grid(count: int, image_size: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """Prefix tokens and grid of a model that is not known: the one grid of square patches that fits the image.

    Raises:
        ValueError: if no grid fits, or several.
    """
    height, width = image_size
    patches = [p for p in range(1, math.gcd(height, width) + 1) if height % p == 0 and width % p == 0]
    fits = {
        (count - (height // p) * (width // p), (height // p, width // p))
        for p in patches
        if 0 <= count - (height // p) * (width // p) <= _MOST_PREFIX_TOKENS
    }
    if len(fits) == 1:
        return fits.pop()
    found = "none" if not fits else " and ".join(f"{p} + {h} x {w}" for p, (h, w) in sorted(fits))
    raise ValueError(
        f"Cannot tell how {count} tokens lie on an image of {height} x {width}: grids of square patches that fit are "
        f"{found}. Ask for `return_tokens=True` and arrange the tokens yourself, or pass the model itself instead of a "
        "function, so that its prefix tokens and patch size can be read from it."
    )


def _channels_last(tokens: Tensor, module: nn.Module) -> bool:
    shape = getattr(module, "normalized_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 1 or type(module).__name__.endswith("2d"):
        return False
    return bool(tokens.shape[-1] == shape[0])
