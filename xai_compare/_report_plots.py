"""The curves of the report, as inline SVG."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

_MARKERS, _DASHES = "os^DvPX<>phd", ("", "5 2", "1.5 1.5")
_INKS = 6  # colours that report.css has for lines
TEXT, _GRID = "#010101", "#010102"  # stand for what the style sheet decides
STYLE: dict[str, Any] = {
    **{f"{name}.color": TEXT for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": TEXT for name in ("edgecolor", "labelcolor")},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 9,
    "grid.color": _GRID,
    "svg.fonttype": "none",
    "svg.hashsalt": "xai_compare",
}
_NAMES = {"MIF": "MIF, most important first", "LIF": "LIF, least important first"}


@dataclass(frozen=True)
class Curve:
    """The mean curve of one method in one metric, with the 95 % interval of the mean; `axis` labels the horizontal."""

    metric: str
    method: str
    name: str
    axis: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


Key = tuple[int, str, int, str, str]  # of a legend: number, title, ink, dashes and marker of a method's line
Panel = tuple[str, str, str, Markup]  # a plot: its name, what its axis means, view box, and what the SVG holds


def sections(
    curves: Sequence[Curve], methods: dict[str, str], metrics: dict[str, str]
) -> list[tuple[str, list[Key], list[Panel]]]:
    """For each metric its title, a legend, and a plot for each name of its curves, all of the same height."""
    order, numbers, found = list(methods), count(), []
    for metric, title in metrics.items():
        own = [curve for curve in curves if curve.metric == metric]
        names = sorted(dict.fromkeys(curve.name for curve in own), key=lambda name: name == "LIF")
        drawn = {curve.method for curve in own}
        keys = [_key(index, title) for index, (method, title) in enumerate(methods.items()) if method in drawn]
        panels = [_panel([c for c in own if c.name == name], own, order, f"plot{next(numbers)}") for name in names]
        found += [(title, keys, panels)] if panels else []
    return found


def _panel(curves: list[Curve], own: list[Curve], order: list[str], name: str) -> Panel:
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes: Any = figure.subplots()
        for curve in curves:
            _draw(axes, curve, order.index(curve.method))
        axes.set_ylim(*_limits(own))
        axes.margins(x=0.02)
        axes.set_xlabel(curves[0].axis, parse_math=False)
        shown = _NAMES.get(curves[0].name, curves[0].name)
        return shown, curves[0].axis, *inline(figure, name)


def _draw(axes: Any, curve: Curve, index: int) -> None:
    x, mean = np.asarray(curve.x, dtype=float), np.asarray(curve.mean, dtype=float)
    color, dash = line_color(index), _DASHES[index // _INKS % len(_DASHES)]
    band = axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.1, linewidth=0)
    band.set_gid(f"band{index}")
    every = max(1, len(x) // 6)
    (line,) = axes.plot(x, mean, color=color, linewidth=1.4, markersize=4.5, marker=_MARKERS[index % len(_MARKERS)])
    line.set_markevery((index % every, every))  # so that markers of different lines do not hide each other
    if dash:
        line.set_linestyle((0, tuple(float(one) for one in dash.split())))
    line.set_gid(f"line{index}")


def line_color(index: int) -> str:
    """The colour of a line, which stands for the style sheet's."""
    return f"#0001{index % _INKS:02x}"


def _limits(curves: list[Curve]) -> tuple[float, float]:
    values = np.concatenate([np.asarray(v, dtype=float).ravel() for c in curves for v in (c.mean, c.low, c.high)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def inline(figure: Figure, name: str) -> tuple[str, Markup]:
    """The view box of a figure's SVG, and the rest of it with ids of its own and colours of the style sheet."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    opened, svg = svg[svg.index("<svg") :].split(">", 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(TEXT, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r"#0001([0-9a-f]{2})\b", lambda found: f"var(--line{int(found[1], 16)})", svg)
    return opened.split('viewBox="')[1].split('"')[0], Markup(svg)


def _key(index: int, title: str) -> Key:
    marker = MarkerStyle(_MARKERS[index % len(_MARKERS)])
    outline = marker.get_path().transformed(marker.get_transform() + Affine2D().scale(7, -7).translate(18, 6))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in np.concatenate(outline.to_polygons()))
    dash = _DASHES[index // _INKS % len(_DASHES)]
    return index, title, index % _INKS, " ".join(f"{1.6 * float(one):.1f}" for one in dash.split()), points
