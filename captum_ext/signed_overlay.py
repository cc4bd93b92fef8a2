"""Signed maps drawn over an image."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

BLUE, RED = (0.1, 0.3, 0.95), (0.9, 0.1, 0.1)
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0.0, (*BLUE, 1.0)), (0.5, (*BLUE, 0.0)), (0.5, (*RED, 0.0)), (1.0, (*RED, 1.0))]
)


def signed_overlay(image: Tensor, maps: Tensor, scale: float | None = None) -> npt.NDArray[np.float32]:
    """Lay signed maps over an image: red for positive, blue for negative, zero transparent.

    All maps share one colour scale, so they can be compared.

    Args:
        image: (channels, height, width) with 1 or 3 channels, or (height, width), in [0, 1].
        maps: (maps, h, w) or (h, w) of any size; resized to the image by bilinear interpolation.
        scale: The absolute value that is drawn opaque. None: the largest absolute value of all maps.

    Returns:
        (maps, height, width, 3) colours in [0, 1]; (height, width, 3) for a single map.

    Raises:
        TypeError: if an argument is not a tensor.
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


def overlay_figure(image: Tensor, maps: Mapping[str, Tensor], scale: float | None = None) -> Figure:
    """The image and its signed maps side by side, on one colour scale that is shown.

    Args:
        image: As for `signed_overlay`.
        maps: A title and an (h, w) map for each picture.
        scale: As for `signed_overlay`.

    Returns:
        A matplotlib figure of its own, which pyplot does not know of: `figure.savefig("maps.png")`.

    Raises:
        TypeError: as for `signed_overlay`.
        ValueError: as for `signed_overlay`, or if there are no maps.

    Example:
        >>> import torch
        >>> from captum_ext import overlay_figure
        >>> figure = overlay_figure(torch.rand(3, 48, 48), {"cat": torch.randn(6, 6), "dog": torch.randn(6, 6)})
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'cat', 'dog']
    """
    if not maps:
        raise ValueError("Expected at least one map to draw, got none.")
    scale = max(scale_of(heat, None) for heat in maps.values()) if scale is None else scale
    pictures = {"image": rgb_of(image)} | {title: signed_overlay(image, heat, scale) for title, heat in maps.items()}
    figure = Figure(figsize=(2.4 * len(pictures) + 0.8, 2.7), layout="constrained")
    row = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (title, picture) in zip(row, pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(title)
        axes.set_axis_off()
    figure.colorbar(ScalarMappable(Normalize(-scale, scale), SIGNED), ax=row, label="relevance")
    return figure


def scale_of(maps: Tensor, scale: float | None) -> float:
    """The absolute value that is drawn opaque."""
    if scale is None:
        return float(maps.detach().abs().max()) or 1.0
    if not scale > 0:
        raise ValueError(f"Expected `scale` to be positive, got {scale}.")
    return float(scale)


def rgb_of(image: Tensor) -> npt.NDArray[np.float32]:
    """(height, width, 3) colours of an image in [0, 1]."""
    if not isinstance(image, Tensor):
        raise TypeError(f"Expected `image` to be a tensor, got {type(image)}.")
    pixels = image.detach().float().cpu()
    pixels = pixels[None] if pixels.dim() == 2 else pixels
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"Expected `image` (1 or 3, height, width) or (height, width), got {tuple(image.shape)}.")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"Expected `image` in [0, 1], got [{low:.3g}, {high:.3g}]. Undo the model's normalisation first."
        )
    colors: npt.NDArray[np.float32] = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return colors


def _gray(image: Tensor) -> npt.NDArray[np.float32]:
    """The image's brightness, which leaves the colours to the map."""
    gray: npt.NDArray[np.float32] = rgb_of(image).mean(-1)
    return gray
