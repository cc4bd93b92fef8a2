"""Frames of a video and their signed maps side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from ._notebook_figure import NotebookFigure
from .signed_overlay import BLUE, RED, SIGNED, rgb_of, scale_of
from .video_overlay import check_video, frames_of, video_overlay


def video_strip(
    video: Tensor,
    maps: Mapping[str, Tensor],
    scale: float | None = None,
    frames: Sequence[int] | int = 8,
    fps: float | None = None,
) -> Figure:
    """Frames of a video, its signed maps over them on one colour scale, and how much each frame counts.

    Under each map bars show, for every frame of the map, the sum of its positive scores (red) and of its negative ones
    (blue), and a line their sum. A bar is as wide as the frames of the video that it stands for.

    Args:
        video: As for `video_overlay`.
        maps: A title and a (t, h, w) map for each row.
        scale: As for `video_overlay`.
        frames: The numbers of the frames to show, or how many, spread evenly over the video.
        fps: Frames a second, to label times. None: frames are labelled by number.

    Returns:
        A matplotlib figure of its own, which pyplot does not know of: `figure.savefig("strip.png")`.

    Raises:
        TypeError: as for `video_overlay`.
        ValueError: as for `video_overlay`, or if there are no maps, a frame is not in the video, or `fps` is not
            positive.

    Example:
        >>> import torch
        >>> from captum_ext import video_strip
        >>> figure = video_strip(torch.rand(16, 3, 48, 48), {"wave": torch.randn(8, 6, 6)}, frames=4, fps=8)
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['0.00 s', '0.62 s', '1.25 s', '1.88 s']
    """
    check_video(video)
    if not maps:
        raise ValueError("Expected at least one map to draw, got none.")
    if fps is not None and not fps > 0:
        raise ValueError(f"Expected `fps` to be positive, got {fps}.")
    shown = _shown(frames, len(video))
    spread = {title: _spread(heat, len(video), title) for title, heat in maps.items()}
    scale = max(scale_of(heat, None) for heat in maps.values()) if scale is None else scale
    figure = NotebookFigure(figsize=(1.3 * len(shown) + 1.6, 1.4 + 2.6 * len(maps)), layout="constrained")
    grid = figure.add_gridspec(1 + 2 * len(maps), len(shown), height_ratios=[1.3] + [1.3, 1.0] * len(maps))
    labels = [f"frame {k}" if fps is None else f"{k / fps:.2f} s" for k in shown]
    _draw_row(figure, grid, 0, [rgb_of(video[k]) for k in shown], "video")
    for axes, label in zip(figure.axes, labels, strict=True):
        axes.set_title(label, fontsize=8)
    charts: list[Any] = []
    for row, (title, heat) in enumerate(spread.items()):
        drawn = video_overlay(video[shown], heat[shown], scale)
        _draw_row(figure, grid, 1 + 2 * row, list(drawn), title)
        charts.append(figure.add_subplot(grid[2 + 2 * row, :], sharey=charts[0] if charts else None))
        _draw_bars(charts[-1], maps[title], frames_of(len(video), maps[title]), fps)
    charts[-1].set_xlabel("frame" if fps is None else "time (s)")
    figure.colorbar(ScalarMappable(Normalize(-scale, scale), SIGNED), ax=figure.axes, label="relevance", shrink=0.6)
    return figure


def _shown(frames: Sequence[int] | int, count: int) -> list[int]:
    if isinstance(frames, int):
        if frames < 1:
            raise ValueError(f"Expected `frames` to be at least 1, got {frames}.")
        return [round(float(k)) for k in np.linspace(0, count - 1, min(frames, count))]
    shown = [int(k) for k in frames]
    if not shown or not all(0 <= k < count for k in shown):
        raise ValueError(f"Expected `frames` to be numbers from 0 to {count - 1}, got {shown}.")
    return shown


def _spread(heat: Tensor, count: int, title: str) -> Tensor:
    """A map for each frame of the video."""
    number = frames_of(count, heat)
    if heat.dim() != 3:
        raise ValueError(f"Expected a map (frames, h, w) for {title!r}, got shape {tuple(heat.shape)}.")
    return heat.detach()[number]


def _draw_row(figure: Figure, grid: GridSpec, row: int, pictures: list[Any], title: str) -> None:
    for column, picture in enumerate(pictures):
        axes = figure.add_subplot(grid[row, column])
        axes.imshow(picture)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel("" if column else title, fontsize=8)


def _draw_bars(axes: Any, heat: Tensor, number: list[int], fps: float | None) -> None:
    """The sums of each frame of a map, over the frames of the video on which it lies."""
    values = heat.detach().double().cpu().flatten(1)
    above, below = values.clamp(min=0).sum(1).numpy(), values.clamp(max=0).sum(1).numpy()
    edges = np.searchsorted(number, np.arange(len(values) + 1)) / (1.0 if fps is None else fps)
    starts, widths = edges[:-1], np.diff(edges)
    axes.bar(starts, above, widths, align="edge", color=RED, alpha=0.7, edgecolor="white")
    axes.bar(starts, below, widths, align="edge", color=BLUE, alpha=0.7, edgecolor="white")
    axes.stairs(above + below, edges, color="black", baseline=None)
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("sum", fontsize=8)
    axes.tick_params(labelsize=7)
