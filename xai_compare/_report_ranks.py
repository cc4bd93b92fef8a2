"""Critical-difference diagrams of the report, as inline SVG."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from ._critical_difference import Ranking
from ._report_plots import STYLE, TEXT, inline, line_color
from ._report_table import counted, number, p_value

_SIZE, _WIDEST = 10, 190  # points, of letters and of a name: about 30 letters
_ROW, _FRAME = 0.235, 0.55  # inches
_APART = 5  # points between bars


@dataclass(frozen=True)
class Diagram:
    """One metric's: its title, what is said of it, in words what it shows, view box, and what the SVG holds."""

    title: str
    note: str
    words: str
    view: str
    svg: Markup


def diagrams(rankings: Sequence[Ranking], methods: Mapping[str, str], metrics: Mapping[str, str]) -> list[Diagram]:
    """A diagram for each ranking."""
    numbers = count()
    return [
        Diagram(
            metrics.get(one.metric, one.metric),
            f"{counted(one.n, 'image')}" + (f", Friedman test: p {_equals(p_value(one.p))}" if one.p == one.p else ""),
            _words(one, methods),
            *_drawn(one, methods, f"ranks{next(numbers)}"),
        )
        for one in rankings
    ]


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _words(ranking: Ranking, methods: Mapping[str, str]) -> str:
    said = ", ".join(f"{methods.get(method, method)} {number(rank, 2)}" for method, rank in ranking.order)
    tied = "; ".join(", ".join(methods.get(method, method) for method in group) for group in ranking.groups)
    return f"Mean ranks, the best first: {said}. Not significantly different: {tied or 'none'}."


def _drawn(ranking: Ranking, methods: Mapping[str, str], name: str) -> tuple[str, Markup]:
    order = [method for method, _ in ranking.order]
    columns = _columns([(order.index(group[0]), order.index(group[-1])) for group in ranking.groups])
    with warnings.catch_warnings(), style.context(["default", STYLE, {"font.size": _SIZE}]):
        warnings.filterwarnings("ignore", "Glyph")  # that Matplotlib's font lacks: the browser draws them
        figure = Figure(figsize=(4.4, _FRAME + _ROW * len(order)), layout="constrained")
        axes: Any = figure.subplots()
        for row, (_, rank) in enumerate(ranking.order):
            (dot,) = axes.plot(rank, row, "o", color=line_color(0), markersize=6)
            dot.set_gid(f"dot{row}")
            beside = offset_copy(axes.get_yaxis_transform(), figure, 32, units="points")
            axes.text(1, row, number(rank, 2), transform=beside, ha="right", va="center_baseline")
        for number_, (first, last, column) in enumerate(columns):
            beside = offset_copy(axes.get_yaxis_transform(), figure, -5 - _APART * column, units="points")
            (bar,) = axes.plot([0, 0], [first - 0.25, last + 0.25], color=TEXT, linewidth=2.5, transform=beside)
            bar.set(gid=f"group{number_}", clip_on=False, solid_capstyle="butt")
        shown = [_short(methods.get(method, method)) for method in order]
        axes.set_yticks(range(len(order)), shown, parse_math=False)
        wide = max((column for *_, column in columns), default=-1) + 1
        axes.tick_params("y", length=0, pad=4 + _APART * wide)
        axes.tick_params("x", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.set_xlabel("mean rank")
        return inline(figure, name)


def _short(name: str) -> str:
    """A name that leaves room for the dots."""
    font, kept = FontProperties(size=_SIZE), len(name)
    while text_to_path.get_text_width_height_descent(name[:kept], font, False)[0] > _WIDEST:
        kept -= 1
    return name if kept == len(name) else name[: kept - 1].rstrip() + "\u2026"


def _columns(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Spans of rows, each with the first column in which it overlaps no other."""
    ends: list[int] = []
    found = []
    for first, last in spans:
        column = next((at for at, end in enumerate(ends) if end < first), len(ends))
        ends[column : column + 1] = [last]
        found.append((first, last, column))
    return found
