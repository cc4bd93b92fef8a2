"""The curves of the report, as inline SVG."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

from ._report_table import text

_MARKERS, _DASHES = "os^DvPX<>phd", ("", "5 2", "1.5 1.5")
_INKS = 6  # colours that report.css has for lines
_TEXT, _GRID = "#010101", "#010102"  # stand for what the style sheet decides
_STYLE = {
    **{f"{name}.color": _TEXT for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": _TEXT for name in ("edgecolor", "labelcolor")},
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


def plots(curves: Sequence[Curve], methods: dict[str, str], metrics: dict[str, str]) -> str:
    """For each metric a legend, and a plot for each name of its curves, all of the same height."""
    order = list(methods)
    sections, count = [], 0
    for metric, title in metrics.items():
        own = [curve for curve in curves if curve.metric == metric]
        panels = []
        for name in sorted(dict.fromkeys(curve.name for curve in own), key=lambda name: name == "LIF"):
            panels.append(_panel([curve for curve in own if curve.name == name], own, order, title, f"plot{count}"))
            count += 1
        if panels:
            shown = [method for method in methods if any(curve.method == method for curve in own)]
            legend = "".join(_key(order.index(method), methods[method]) for method in shown)
            sections.append(
                f'<section class="curves{" wide" * (len(panels) > 1)}"><h3>{text(title)}</h3>\n'
                f'<ul class="legend">{legend}</ul>\n<div class="plots">{"".join(panels)}</div></section>'
            )
    return "\n".join(sections)


def _panel(curves: list[Curve], own: list[Curve], order: list[str], title: str, name: str) -> str:
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes: Any = figure.subplots()
        for curve in curves:
            _draw(axes, curve, order.index(curve.method))
        axes.set_ylim(*_limits(own))
        axes.margins(x=0.02)
        axes.set_xlabel(curves[0].axis, parse_math=False)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    shown = _NAMES.get(curves[0].name, curves[0].name)
    label = f"{title}, {shown}: mean of each method and its 95 % interval against {curves[0].axis}"
    return f"<figure><figcaption>{text(shown)}</figcaption>{_inline(file.getvalue(), name, label)}</figure>"


def _draw(axes: Any, curve: Curve, index: int) -> None:
    x, mean = np.asarray(curve.x, dtype=float), np.asarray(curve.mean, dtype=float)
    color, dash = f"#0001{index % _INKS:02x}", _DASHES[index // _INKS % len(_DASHES)]
    band = axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.1, linewidth=0)
    band.set_gid(f"band{index}")
    every = max(1, len(x) // 6)
    (line,) = axes.plot(x, mean, color=color, linewidth=1.4, markersize=4.5, marker=_MARKERS[index % len(_MARKERS)])
    line.set_markevery((index % every, every))  # so that markers of different lines do not hide each other
    if dash:
        line.set_linestyle((0, tuple(float(one) for one in dash.split())))
    line.set_gid(f"line{index}")


def _limits(curves: list[Curve]) -> tuple[float, float]:
    values = np.concatenate([np.asarray(v, dtype=float).ravel() for c in curves for v in (c.mean, c.low, c.high)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _inline(svg: str, name: str, label: str) -> str:
    """Matplotlib's SVG as a part of the page: with ids of its own, colours of the style sheet and a label."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r"#0001([0-9a-f]{2})\b", lambda found: f"var(--line{int(found[1], 16)})", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    opened = f'<svg class="plot" {view[0] if view else ""} role="img" aria-label="{text(label)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opened, svg, count=1)


def _key(index: int, title: str) -> str:
    """An entry of the legend: the line as it is drawn, and a box to hide it."""
    marker = MarkerStyle(_MARKERS[index % len(_MARKERS)])
    outline = marker.get_path().transformed(marker.get_transform() + Affine2D().scale(7, -7).translate(18, 6))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in np.concatenate(outline.to_polygons()))
    ink, dash = f"var(--line{index % _INKS})", _DASHES[index // _INKS % len(_DASHES)]
    swatch = (
        f'<svg viewBox="0 0 36 12" aria-hidden="true" style="color:{ink}"><line x1="0" x2="36" y1="6" y2="6" '
        f'stroke="currentColor" stroke-width="2" stroke-dasharray="{_scaled(dash)}"/>'
        f'<polygon points="{points}" fill="currentColor"/></svg>'
    )
    return f'<li><label><input type="checkbox" data-line="{index}" checked>{swatch}{text(title)}</label></li>'


def _scaled(dash: str) -> str:
    return " ".join(f"{1.6 * float(one):.1f}" for one in dash.split())
