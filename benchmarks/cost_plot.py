"""The measurements as a figure: the methods beside each other, and their growth with the steps."""

from collections.abc import Sequence

from candidates import OTHERS, OURS
from cost_rows import Row
from cost_tables import number, plain_models, stepped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

OUR_BLUES = ("#08306b", "#2171b5", "#5a9fd0")  # one a model, dark to light
GREYS = ("#252525", "#737373", "#999999")
MARKERS = ("o", "s", "^")
LINES = {"IntegratedCDAM": ("#08306b", "o"), "SmoothCDAM": ("#2171b5", "s")}


def render_plot(rows: Sequence[Row]) -> Figure:
    """Two panels; the right one is left out if only one number of steps was measured."""
    lengths = stepped(rows)
    figure = Figure(figsize=(11, 4.6), layout=ConstrainedLayoutEngine(wspace=0.08), dpi=160)
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1 if lengths else 0.25))
    _methods(left, rows)
    if lengths:
        _steps(right, rows, lengths)
    else:
        right.set_axis_off()  # room for the numbers beside the left one
    return figure


def _methods(axes: Axes, rows: Sequence[Row]) -> None:
    batch, steps = rows[0].batch, rows[0].steps
    models = plain_models(rows)[: len(MARKERS)]
    found = {(row.method, row.model): row for row in rows if (row.batch, row.steps) == (batch, steps)}
    names = [name for name in OURS + OTHERS if any((name, model) in found for model in models)]
    for height, name in enumerate(names):
        for turn, model in enumerate(models):
            x = 1.06 + 0.11 * turn
            row = found.get((name, model))
            color = (OUR_BLUES if name in OURS else GREYS)[turn]
            _beside(axes, x, height, number(row.ratio) if row else "-", _color(name))
            if row:
                y = height + 0.22 * (turn - (len(models) - 1) / 2)
                axes.plot([row.low, row.high], [y, y], color=color, linewidth=1.5)
                axes.plot(row.ratio, y, MARKERS[turn], color=color, markersize=5.5)
    for turn, model in enumerate(models):
        axes.plot([], [], MARKERS[turn], color=GREYS[turn], label=model)
        _beside(axes, 1.06 + 0.11 * turn, -0.9, model.removeprefix("ViT-"), "black")
    axes.set_yticks(range(len(names)), names, fontsize=10)
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(_color(name))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.legend(loc="upper right", fontsize=9, frameon=False)
    axes.set_title(f"Time, batch {batch}, {steps} steps or samples", fontsize=11, loc="left")
    axes.set_xscale("log")
    _finish(axes)
    axes.set_xlabel("plain forward passes (log scale)", fontsize=10)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _color(method: str) -> str:
    """Blue for this project's methods."""
    return OUR_BLUES[0] if method in OURS else GREYS[0]


def _beside(axes: Axes, x: float, height: float, text: str, color: str) -> None:
    """A number to the right of the panel."""
    axes.text(x, height, text, color=color, transform=axes.get_yaxis_transform(), va="center", ha="center", fontsize=10)


def _steps(axes: Axes, rows: Sequence[Row], names: set[str]) -> None:
    first, batch = plain_models(rows)[0], rows[0].batch
    for name in (name for name in OURS + OTHERS if name in names):
        chosen = [row for row in rows if (row.model, row.batch, row.method) == (first, batch, name)]
        chosen.sort(key=lambda row: row.steps)
        color, marker = LINES.get(name, ("#737373", "^"))
        axes.plot(
            [row.steps for row in chosen],
            [row.ratio for row in chosen],
            marker=marker,
            color=color,
            label=name.split()[-1],
        )
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="one plain pass")
    ticks = sorted({row.steps for row in rows if row.model == first and row.method in names})
    axes.set_xscale("log")
    axes.set_yscale("log")
    _finish(axes)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), high * 8)  # room for the legend
    axes.set_title(f"Growth, {first}, batch {batch}", fontsize=11, loc="left")
    axes.set_xlabel("steps or samples (log scale)", fontsize=10)
    axes.set_ylabel("plain forward passes (log scale)", fontsize=10)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
