"""Signed maps drawn over a spectrogram."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ._notebook_figure import NotebookFigure
from .signed_overlay import SIGNED, rgb_of, scale_of, signed_overlay


def spectrogram_overlay(spectrogram: Tensor, maps: Tensor, scale: float | None = None) -> npt.NDArray[np.float32]:
    """Lay signed maps over a spectrogram, low frequencies at the bottom: red for positive, blue for negative.

    Args:
        spectrogram: (frequency, time), lowest frequency first, of any unit: drawn from black, its smallest value, to
            white, its largest. Of the input (time, frequency) of an Audio Spectrogram Transformer pass `inputs[0].T`.
        maps: (maps, f, t) or (f, t), as `attribute` returns them for a sample; resized by bilinear interpolation.
        scale: The absolute value that is drawn opaque. None: the largest absolute value of all maps.

    Returns:
        (maps, frequency, time, 3) colours in [0, 1], the highest frequency in the first row; (frequency, time, 3) for a
        single map.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: if a shape does not fit, frequency and time are exchanged, values are not finite, or `scale` is not
            positive.

    Example:
        >>> import torch
        >>> from captum_ext import spectrogram_overlay
        >>> spectrogram_overlay(torch.randn(128, 1024), torch.randn(12, 101)).shape
        (128, 1024, 3)
    """
    picture = _brightness(spectrogram)
    if isinstance(maps, Tensor) and maps.dim() in (2, 3):
        _check_axes(picture.shape, maps.shape[-2:])
    drawn = signed_overlay(picture, maps, scale)
    return np.flip(drawn, -3).copy()


def spectrogram_figure(
    spectrogram: Tensor, maps: Mapping[str, Tensor], scale: float | None = None, seconds: float | None = None
) -> Figure:
    """The spectrogram and its signed maps one below the other, time to the right, frequency upwards, on one scale.

    Args:
        spectrogram: As for `spectrogram_overlay`.
        maps: A title and an (f, t) map for each picture.
        scale: As for `spectrogram_overlay`.
        seconds: How long the sound is, to label times. None: the axis counts the spectrogram's frames.

    Returns:
        A matplotlib figure of its own, which pyplot does not know of: `figure.savefig("sound.png")`.

    Raises:
        TypeError: as for `spectrogram_overlay`.
        ValueError: as for `spectrogram_overlay`, or if there are no maps, or `seconds` is not positive.

    Example:
        >>> import torch
        >>> from captum_ext import spectrogram_figure
        >>> figure = spectrogram_figure(torch.randn(128, 1024), {"dog": torch.randn(12, 101)}, seconds=10.24)
        >>> [axes.get_title() for axes in figure.axes[:2]], figure.axes[1].get_xlabel()
        (['spectrogram', 'dog'], 'time (s)')
    """
    if not maps:
        raise ValueError("Expected at least one map to draw, got none.")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"Expected `seconds` to be positive, got {seconds}.")
    brightness = _brightness(spectrogram)
    scale = max(scale_of(heat, None) for heat in maps.values()) if scale is None else scale
    pictures = {"spectrogram": np.flip(rgb_of(brightness), 0)} | {
        title: spectrogram_overlay(spectrogram, heat, scale) for title, heat in maps.items()
    }
    bins, frames = brightness.shape
    figure = NotebookFigure(figsize=(7.0, 1.9 * len(pictures) + 0.4), layout="constrained")
    column = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, picture) in zip(column, pictures.items(), strict=True):
        axes.imshow(picture, aspect="auto", extent=(0, frames if seconds is None else seconds, 0, bins))
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("frequency (bin)")
    column[-1].set_xlabel("time (frame)" if seconds is None else "time (s)")
    figure.colorbar(ScalarMappable(Normalize(-scale, scale), SIGNED), ax=column, label="relevance")
    return figure


def _brightness(spectrogram: Tensor) -> Tensor:
    """A spectrogram in [0, 1]."""
    if not isinstance(spectrogram, Tensor):
        raise TypeError(f"Expected `spectrogram` to be a tensor, got {type(spectrogram)}.")
    if spectrogram.dim() != 2 or not spectrogram.numel() or not bool(torch.isfinite(spectrogram).all()):
        raise ValueError(f"Expected a finite `spectrogram` (frequency, time), got shape {tuple(spectrogram.shape)}.")
    values = spectrogram.detach().float().cpu()
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


def _check_axes(spectrogram: torch.Size, grid: torch.Size) -> None:
    """Refuse a spectrogram whose axes are exchanged: a place of the map would be long and thin, and else square."""

    def oblong(height: int, width: int) -> float:
        sides = height / grid[0], width / grid[1]
        return max(sides) / min(sides)

    height, width = spectrogram
    if min(grid) > 1 and oblong(width, height) <= 1.5 and oblong(height, width) > 4:
        raise ValueError(
            f"Expected `spectrogram` (frequency, time) as the map {tuple(grid)}, got shape {tuple(spectrogram)}, which "
            "fits the map's axes exchanged: pass `spectrogram.T`."
        )
