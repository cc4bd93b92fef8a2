"""The measurements as Markdown tables."""

from collections.abc import Callable, Iterable, Sequence

from candidates import IMAGES_AT_ONCE, KINDS, OTHERS, OURS, WHOLE_PASSES
from cost_rows import Row
from measuring import SLOW, SLOW_REPEATS

NOTES = f"""\
Times are multiples of one plain forward pass without gradients of the same model and batch, on random weights: medians,
with quartiles in parentheses. All methods run in one process, in an order drawn anew for each round, each between two
plain passes; a ratio is taken to the mean of these two. What costs more than {SLOW} passes runs {SLOW_REPEATS} times.

Memory is the most that tensors take during the call above what they took before it (weights and images), in multiples
of the same for the plain pass. {", ".join(WHOLE_PASSES)}
run the whole model for each step or sample, for at most {IMAGES_AT_ONCE} images (or one batch) at once, which sets
their memory. A dash means that they were left out where a batch is large; `--all` runs them.

All explain one class (or ten, where it says so) at the norm in front of the last attention, Input methods at the
pixels. NoiseTunnel is around LayerGradientXActivation. "Baseline given" is a tensor of tokens, otherwise it is zero.
"""


def render_tables(rows: Sequence[Row], heading: str, figure: str) -> str:
    """The document; `heading` says where and how it was measured, `figure` names the picture."""
    models = plain_models(rows)
    first = models[0]
    batch, steps = rows[0].batch, rows[0].steps  # the setting of the main table is measured first
    main = [row for row in rows if row.model in models and (row.batch, row.steps) == (batch, steps)]
    batches = [row for row in rows if row.model == first and row.steps == steps]
    lengths = [row for row in rows if row.model == first and row.batch == batch and row.method in stepped(rows)]
    kinds = [row for row in rows if row.model not in models]
    parts = [
        "# What an explanation costs",
        heading,
        f"![Time of each method in plain forward passes]({figure})",
        f"## Time: batch {batch}, {steps} steps or samples",
        table(main, lambda row: row.model, time_cell, OURS + OTHERS),
        _plain_seconds(main),
        f"## Peak memory: batch {batch}, {steps} steps or samples",
        table(main, lambda row: row.model, memory_cell, OURS + OTHERS),
    ]
    if len({row.batch for row in batches}) > 1:
        by_batch = sorted(batches, key=lambda row: row.batch)
        parts += [
            f"## The batch grows: {first}, {steps} steps or samples",
            *_time_and_memory(by_batch, lambda row: f"batch {row.batch}"),
        ]
    if len({row.steps for row in lengths}) > 1:
        by_steps = sorted(lengths, key=lambda row: row.steps)
        parts += [
            f"## The steps grow: {first}, batch {batch}",
            *_time_and_memory(by_steps, lambda row: f"{row.steps} steps"),
        ]
    if kinds:
        parts += [
            f"## Other outputs: batch {kinds[0].batch}, {kinds[0].steps} steps or samples",
            "The output reads all tokens, a hook sits on the last attention or the last block, or a function hides\n"
            "the model. In parentheses what a step costs, (forwards - 1) / steps:",
            table(kinds, lambda row: row.model, step_cell, OURS),
        ]
    return "\n\n".join([*parts, "## How it is measured", NOTES])


def table(rows: Sequence[Row], column: Callable[[Row], str], cell: Callable[[Row], str], methods: Iterable[str]) -> str:
    """Methods down, columns across, a dash where nothing was measured."""
    columns = list(dict.fromkeys(map(column, rows)))
    cells = {(row.method, column(row)): cell(row) for row in rows}
    named = {row.method for row in rows}
    lines = [_line(["method", *columns]), "|---" * (len(columns) + 1) + "|"]
    lines += [
        _line([method, *(cells.get((method, one), "-") for one in columns)]) for method in methods if method in named
    ]
    return "\n".join(lines)


def plain_models(rows: Sequence[Row]) -> list[str]:
    """The models explained as they are, in the order measured."""
    return [name for name in dict.fromkeys(row.model for row in rows) if not name.endswith(KINDS[1:])]


def stepped(rows: Sequence[Row]) -> set[str]:
    """The methods measured with several numbers of steps on the first model."""
    models = plain_models(rows)
    pairs = {(row.method, row.steps) for row in rows if row.model == models[0] and row.batch == rows[0].batch}
    names = [method for method, _ in pairs]
    return {method for method in names if names.count(method) > 1}


def time_cell(row: Row) -> str:
    """Median and quartiles."""
    return f"{number(row.ratio)} ({number(row.low)}-{number(row.high)})"


def memory_cell(row: Row) -> str:
    """Multiple of the plain pass."""
    return number(row.memory)


def step_cell(row: Row) -> str:
    """Median, and what a step costs."""
    has_steps = row.method.startswith(("IntegratedCDAM", "SmoothCDAM"))
    return f"{number(row.ratio)} ({(row.ratio - 1) / row.steps:.3f})" if has_steps else number(row.ratio)


def number(value: float) -> str:
    """Two decimals below 10, one below 100, none above."""
    return f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f}"


def _time_and_memory(rows: Sequence[Row], column: Callable[[Row], str]) -> list[str]:
    tables = (table(rows, column, cell, OURS + OTHERS) for cell in (time_cell, memory_cell))
    return [part for pair in zip(("Time:", "Peak memory:"), tables, strict=True) for part in pair]


def _plain_seconds(rows: Sequence[Row]) -> str:
    seconds = {row.model: row.seconds_of_forward for row in rows}
    return (
        "One plain pass: " + ", ".join(f"{1000 * value:.0f} ms for {model}" for model, value in seconds.items()) + "."
    )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
