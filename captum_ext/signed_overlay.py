"""Signed maps drawn over an image."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ._notebook_figure import NotebookFigure

_TITLE = 24  # letters of a line above a picture
BLUE, RED = (0.1, 0.3, 0.95), (0.9, 0.1, 0.1)
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0.0, (*BLUE, 1.0)), (0.5, (*BLUE, 0.0)), (0.5, (*RED, 0.0)), (1.0, (*RED, 1.0))]
)


def signed_overlay(image: Any, maps: Tensor, scale: float | None = None) -> npt.NDArray[np.float32]:
    """Lay signed maps over an image: red for positive, blue for negative, zero transparent.

    All maps share one colour scale, so they can be compared.

    Args:
        image: A tensor or array (channels, height, width) with 1 or 3 channels, (height, width, channels) or
            (height, width), in [0, 1] or of type uint8; or a PIL image.
        maps: (maps, h, w) or (h, w) of any size; resized to the image by bilinear interpolation.
        scale: The absolute value that is drawn opaque. None: the largest absolute value of all maps.

    Returns:
        (maps, height, width, 3) colours in [0, 1]; (height, width, 3) for a single map.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if a shape does not fit, the image is not in [0, 1], or `scale` is not positive.

    Example:
        >>> import torch
        >>> from captum_ext import signed_overlay
        >>> signed_overlay(torch.rand(3, 48, 48), torch.randn(2, 6, 6)).shape
        (2, 48, 48, 3)
    """
    base = _gray(image)
    if not isinstance(maps, Tensor):
        raise TypeError(f"Expected `maps` to be a tensor, got {type(maps)}.")
    if maps.dim() not in (2, 3) or not bool(torch.isfinite(maps).all()):
        raise ValueError(f"Expected finite `maps` (maps, h, w) or (h, w), got shape {tuple(maps.shape)}.")
    scale = scale_of(maps, scale)
    sized = F.interpolate(maps.detach().reshape(1, -1, *maps.shape[-2:]).float().cpu(), base.shape, mode="bilinear")[0]
    signed = (sized / scale).clamp(-1, 1).numpy()[..., None]
    colors, opacity = np.where(signed > 0, RED, BLUE), np.abs(signed)
    drawn: npt.NDArray[np.float32] = ((1 - opacity) * base[..., None] + opacity * colors).astype(np.float32)
    return drawn.reshape(*maps.shape[:-2], *drawn.shape[1:])


def overlay_figure(
    image: Any,
    maps: Mapping[str, Tensor] | Tensor,
    scale: float | Literal["each"] | None = None,
    *,
    path: str | Path | None = None,
) -> Figure:
    """The image and its signed maps side by side, on one colour scale that is shown.

    Args:
        image: As for `signed_overlay`; a batch of one image counts as the image.
        maps: A title and a map for each picture: (h, w), or (1, h, w) and (1, 1, h, w) as `attribute` returns them. Or
            one such map.
        scale: The absolute value that is drawn opaque. None: the largest of all maps. "each": of each map its own,
            which its title says; for maps of methods whose values have other units.
        path: Where to save the picture, too.

    Returns:
        A matplotlib figure of its own, which pyplot does not know of: `figure.savefig("maps.png")`. Notebooks show it.

    Raises:
        TypeError: as for `signed_overlay`.
        ValueError: as for `signed_overlay`, or if there are no maps, or several in one.

    Example:
        >>> import torch
        >>> from captum_ext import overlay_figure
        >>> figure = overlay_figure(torch.rand(3, 48, 48), {"cat": torch.randn(6, 6), "dog": torch.randn(6, 6)})
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'cat', 'dog']
    """
    named = {title: _one_map(heat) for title, heat in _named(maps).items()}
    if not named:
        raise ValueError("Expected at least one map to draw, got none.")
    scales = {title: scale_of(heat, None) for title, heat in named.items()}
    if scale != "each":
        scales = dict.fromkeys(
            named, max(scales.values()) if scale is None else scale_of(next(iter(named.values())), scale)
        )
    own = {title: f"{title}\n(full colour: {scales[title]:.2g})" if scale == "each" else title for title in named}
    pictures = {"image": rgb_of(image)}
    pictures |= {own[title]: signed_overlay(image, heat, scales[title]) for title, heat in named.items()}
    figure = NotebookFigure(figsize=(2.4 * len(pictures) + 0.8, 2.7), layout="constrained")
    row = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (title, picture) in zip(row, pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_title("\n".join(textwrap.fill(line, _TITLE) for line in title.splitlines()))
        axes.set_axis_off()
    limit = 1.0 if scale == "each" else next(iter(scales.values()))
    label = "relevance in parts of each map's largest" if scale == "each" else "relevance"
    figure.colorbar(ScalarMappable(Normalize(-limit, limit), SIGNED), ax=row, label=label)
    if path is not None:
        figure.savefig(path)
    return figure


def _named(maps: Any) -> Mapping[str, Tensor]:
    if isinstance(maps, Mapping):
        return maps
    if not isinstance(maps, Tensor):
        raise TypeError(f"Expected `maps` to be a dictionary of titles and maps, or one map, got {type(maps)}.")
    return {"relevance": maps}


def _one_map(heat: Any) -> Tensor:
    """(h, w) of what `attribute` returns for one image."""
    if not isinstance(heat, Tensor):
        raise TypeError(f"Expected each map to be a tensor, got {type(heat)}.")
    if heat.dim() < 2 or heat.shape[:-2].numel() != 1:
        raise ValueError(
            f"Expected one map (h, w), (1, h, w) or (1, 1, h, w) for each picture, got shape {tuple(heat.shape)}: draw "
            "the samples of a batch and the maps of several classes one by one, as `heat[0, 0]`."
        )
    return heat.reshape(heat.shape[-2:])


def scale_of(maps: Tensor, scale: float | None) -> float:
    """The absolute value that is drawn opaque."""
    if scale is None:
        return float(maps.detach().abs().max()) or 1.0
    if not scale > 0:
        raise ValueError(f"Expected `scale` to be positive, got {scale}.")
    return float(scale)


def rgb_of(image: Any) -> npt.NDArray[np.float32]:
    """(height, width, 3) colours of an image in [0, 1]."""
    if hasattr(image, "convert"):
        image = np.array(image.convert("RGB"))
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(f"Expected `image` to be a tensor, an array or a PIL image, got {type(image)}.")
    given = torch.as_tensor(image).detach().cpu()
    pixels = given.float() / 255 if given.dtype is torch.uint8 else given.float()
    pixels = pixels[0] if pixels.dim() == 4 and len(pixels) == 1 else pixels
    pixels = pixels[None] if pixels.dim() == 2 else pixels
    if pixels.dim() == 3 and pixels.shape[0] not in (1, 3) and pixels.shape[-1] in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            "Expected `image` (1 or 3, height, width), (height, width, 1 or 3) or (height, width), got "
            f"{tuple(given.shape)}."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"Expected `image` in [0, 1], got [{low:.3g}, {high:.3g}]. Undo the model's normalisation first."
        )
    colors: npt.NDArray[np.float32] = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return colors


def _gray(image: Any) -> npt.NDArray[np.float32]:
    """The image's brightness, which leaves the colours to the map."""
    gray: npt.NDArray[np.float32] = rgb_of(image).mean(-1)
    return gray
