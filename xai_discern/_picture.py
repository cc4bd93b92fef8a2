"""The picture of an image's maps: a row for each method, a column for each thing explained."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from captum_ext.signed_overlay import SIGNED, rgb_of, scale_of, signed_overlay

_QUANTILE = 0.99  # of the absolute values of a method's maps: so single pixels do not set the scale
_LETTERS = 26  # of a line above a picture
_AREA = 2.7  # inches of the side of a square picture


def robust_scale(maps: Tensor) -> float:
    """The absolute value that is drawn opaque: the 99th percentile of all maps, or their largest if that is 0."""
    values = maps.abs().flatten().float()
    kth = max(1, round(_QUANTILE * len(values)))
    return float(values.kthvalue(kth).values) or scale_of(maps, None)


def save_picture(
    path: Path,
    image: Tensor,
    caption: str,
    titles: Sequence[str],
    maps: Mapping[str, tuple[Tensor, float]],
) -> None:
    """Draw and save it.

    Args:
        path: The file.
        image: (channels, height, width) in [0, 1], as the model saw it.
        caption: What the model says of the image.
        titles: Of what is explained.
        maps: By method the maps (titles, h, w), and the absolute value that is drawn opaque.
    """
    columns, lines = 1 + len(titles), len(caption.splitlines())
    width = _AREA * (image.shape[2] / image.shape[1]) ** 0.5
    height = width * image.shape[1] / image.shape[2] + 0.35
    size = (width * columns + 1.0, height * len(maps) + 0.2 + 0.2 * lines)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    rows = figure.subplots(len(maps), columns, squeeze=False)
    image = image if len(image) in (1, 3) else image.mean(0, keepdim=True)
    for row, (name, (found, limit)) in zip(rows, maps.items(), strict=True):
        drawn = signed_overlay(image, found, limit)
        for axes, picture in zip(row, [rgb_of(image), *drawn], strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
        row[0].set_title(name, fontsize=10, loc="left")
        figure.colorbar(ScalarMappable(Normalize(-limit, limit), SIGNED), ax=list(row), label="against      for")
    for axes, title in zip(rows[0, 1:], titles, strict=True):
        axes.set_title("\n".join(textwrap.fill(line, _LETTERS) for line in title.splitlines()), fontsize=10)
    figure.suptitle("\n".join(textwrap.fill(line, 34 * columns) for line in caption.splitlines()), fontsize=10)
    figure.savefig(path)
