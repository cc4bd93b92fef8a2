"""The demo's picture: a row for each question, a column for each method."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_ext import signed_overlay


def picture_grid(
    images: Tensor, targets: Tensor, digits: Tensor, maps: dict[str, Tensor], rows: Sequence[int]
) -> Figure:
    """Scene, digit asked for, and the maps.

    A method's maps of one scene share a colour scale, so that its two maps can be compared; methods
    do not share one, because their units differ. The scenes are drawn pale, dark ink on white, so that the maps stand
    out.

    Args:
        images: (samples, 1, height, width).
        targets: (samples,).
        digits: (samples, 1, height, width) booleans, where the digit asked for is.
        maps: (samples, 1, height, width) of each method.
        rows: Which samples to draw, the questions about one scene next to each other, two and two.
    """
    columns = len(maps) + 1
    figure = Figure(figsize=(1.75 * columns, 1.8 * len(rows) + 0.9), layout="constrained")
    figure.suptitle("Red speaks for the digit asked for, blue against it; the box marks where it is", fontsize=13)
    axes = figure.subplots(len(rows), columns)
    for row, sample in enumerate(rows):
        ink = images[sample].clamp(0, 1)
        axes[row, 0].imshow(1 - ink[0], cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(f"where is the {int(targets[sample])}?", fontsize=12)
        for column, (method, heat) in enumerate(maps.items(), start=1):
            scale = float(heat[[rows[row - row % 2], rows[row - row % 2 + 1]]].abs().max())
            axes[row, column].imshow(signed_overlay(1 - 0.35 * ink, heat[sample, 0], scale))
            axes[0, column].set_title(method, fontsize=11)
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.add_patch(_box(digits[sample, 0]))
    axes[0, 0].set_title("scene", fontsize=11)
    return figure


def _box(digit: Tensor) -> Rectangle:
    rows, columns = digit.nonzero().T
    top, left = int(rows.min()), int(columns.min())
    size = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    return Rectangle((left - 0.5, top - 0.5), size[1], size[0], fill=False, edgecolor="limegreen", linewidth=1)
