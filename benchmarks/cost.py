"""What an explanation costs, as a multiple of one plain forward pass without gradients.

    make bench                                                                # the standard set, on the CPU
    .venv/bin/python benchmarks/cost.py --device cuda                         # the same on a GPU
    .venv/bin/python benchmarks/cost.py --models vit_base_patch16_224 --batches 1 --steps 50
    .venv/bin/python benchmarks/cost.py --render docs                         # table and figure from the csv again

The standard set: three models; the batch grows; the steps grow; models that read more than the class token. Results are
kept after each run in performance-DEVICE.csv, and a second call resumes where the first one stopped.
"""

import argparse
import datetime
import gc
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from candidates import KINDS, LABELS, OTHERS, OURS, PLAIN, WHOLE_PASSES, label, make_model, methods
from cost_plot import render_plot
from cost_rows import Key, Row, read_rows, write_rows
from cost_tables import render_tables
from measuring import enough, peak_memory, rounds, spread
from tqdm import tqdm

LARGE = 500_000  # tokens times channels of a batch; above, methods that run the whole model each step are left out
STEPPED = ("IntegratedCDAM", "SmoothCDAM", "Captum LayerIntegratedGradients")
KIND_STEPS = 10


@dataclass(frozen=True)
class Setting:
    """A model with inputs, and the methods to measure on it."""

    model: str
    batch: int
    steps: int
    methods: tuple[str, ...] = OURS + OTHERS
    kind: str = PLAIN

    @property
    def title(self) -> str:
        """A description."""
        return f"{label(self.model, self.kind)}, batch {self.batch}, {self.steps} steps or samples"

    def key(self, method: str) -> Key:
        """The key of the method's row."""
        return label(self.model, self.kind), self.batch, self.steps, method


def main() -> None:
    """Measure, and write csv, Markdown and figure."""
    parser = make_parser()
    args = parser.parse_args()
    if args.render:
        for table in sorted(args.render.glob("performance-*.csv")):
            render(table)
        return
    torch.empty(0, device=args.device)  # a missing device is an error before anything is written
    how = command(parser, args)
    if args.quick:
        args.models, args.batches, args.steps, args.repeats = ["tiny"], [1, 2], [2, 4], 2
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / f"performance-{args.device.split(':')[0]}.csv"
    note(table.with_suffix(".txt"), environment(args.device), how)
    gc.freeze()  # collecting garbage before each measurement would walk all imported modules
    plan = [only(one, args.methods) for one in settings(args.models, args.batches, args.steps)]
    measure(table, plan, args.repeats, args.device, args.all)
    gc.unfreeze()
    render(table)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cost of explanations against a plain forward pass.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--models", nargs="+", default=list(LABELS), help="ViTs of timm; batch and steps grow on the first"
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 4, 32], help="the middle one is used for the rest"
    )
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[10, 50, 200], help="the middle one is used for the rest"
    )
    parser.add_argument("--methods", nargs="+", default=None, metavar="NAME", help="only these, as SmoothCDAM")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; slow methods run in fewer")
    parser.add_argument("--all", action="store_true", help="run slow methods in large settings too")
    parser.add_argument("--quick", action="store_true", help="a tiny model, for a trial run")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER")
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="only write tables and figures of its csv files")
    return parser


def settings(models: list[str], batches: list[int], steps: list[int]) -> Iterator[Setting]:
    """What is measured, the main table first."""
    first, batch, step = models[0], sorted(batches)[len(batches) // 2], sorted(steps)[len(steps) // 2]
    for model in models:
        yield Setting(model, batch, step)
    for other in batches:
        yield Setting(first, other, step)
    for other in steps:
        yield Setting(first, batch, other, STEPPED if other <= step else STEPPED[:2])
    for kind in KINDS[1:]:
        yield Setting(first, batch, min(KIND_STEPS, step), OURS, kind)


def only(setting: Setting, names: list[str] | None) -> Setting:
    """The setting with these methods alone."""
    return setting if names is None else replace(setting, methods=tuple(x for x in setting.methods if x in names))


def measure(table: Path, plan: list[Setting], repeats: int, device: str, everything: bool) -> None:
    """Measure what the file does not hold yet; the file is written after each run."""
    rows = {row.key: row for row in read_rows(table)}
    for turn, setting in enumerate(plan, start=1):
        names = [name for name in setting.methods if not done(rows.get(setting.key(name)), repeats)]
        if names:
            print(f"{turn} of {len(plan)}: {setting.title}", flush=True)
            for row in measured(setting, names, repeats, device, everything):
                rows[row.key] = row
                write_rows(table, rows.values())


def done(row: Row | None, repeats: int) -> bool:
    """Was the method timed often enough?"""
    return row is not None and enough([row.ratio] * row.repeats, repeats)


def measured(setting: Setting, names: list[str], repeats: int, device: str, everything: bool) -> Iterator[Row]:
    """The memory of each method, then its times; a row is yielded anew whenever its method was timed once more."""
    model = make_model(setting.model, setting.kind).to(device)
    images = torch.randn(setting.batch, 3, *model.patch_embed.img_size, device=device).requires_grad_()
    large = setting.batch * model.get_parameter("pos_embed").numel() > LARGE
    left_out = WHOLE_PASSES if large and not everything else ()
    runs = methods(model, images, setting.steps, setting.kind)
    runs = {name: runs[name] for name in names if name not in left_out}
    if not runs:
        return
    warm_up = methods(model, images, 2, setting.kind)

    @torch.no_grad()
    def plain() -> None:
        model(images)

    plain()
    with tqdm(total=len(runs) * (repeats + 1), unit="run") as bar:
        of_plain = peak_memory(plain, device)
        memory = {}
        for name, run in runs.items():
            bar.set_description(f"memory of {name}")
            warm_up[name]()
            memory[name] = peak_memory(run, device, times=1 if name in WHOLE_PASSES else 3) / of_plain
            bar.update()
        forwards = []
        for name, timings in rounds(plain, runs, repeats, device):
            bar.set_description(f"time of {name}")
            bar.update()
            forwards.append(timings[-1].before)
            time = spread([one.ratio for one in timings])
            yield Row(*setting.key(name), *time, memory[name], statistics.median(forwards), len(timings))


def environment(device: str) -> str:
    """Versions and machine, in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "captum", "timm", "grad-cam"))
    if device != "cpu":
        return f"{libraries}; {torch.cuda.get_device_name(device)}."
    threads = torch.get_num_threads()
    return f"{libraries}; CPU {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {threads} threads."


def command(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Date and command, in one line; folders are left out, as they say nothing about the numbers."""
    parts = ["python benchmarks/cost.py"]
    for name, value in vars(args).items():
        if name not in ("out", "render") and value != parser.get_default(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            parts.append(" ".join([f"--{name}", *map(str, values)]))
    return f"{datetime.date.today()}: `{' '.join(parts)}`."


def note(path: Path, environment: str, command: str) -> None:
    """Keep where and how it was measured; numbers of different machines or versions are not mixed.

    Raises:
        SystemExit: if the folder holds results from elsewhere.
    """
    lines = path.read_text().splitlines() if path.exists() else [environment]
    if lines[0] != environment:
        raise SystemExit(
            f"The results there are from: {lines[0]} Here: {environment} Pass another --out, or delete them."
        )
    if command not in lines:
        lines.append(command)
    path.write_text("\n".join(lines) + "\n")


def render(table: Path) -> None:
    """Write the Markdown and the figure of a csv file."""
    rows = read_rows(table)
    notes = table.with_suffix(".txt")
    heading = " ".join(notes.read_text().splitlines()) if notes.exists() else "Measured elsewhere."
    figure = table.with_suffix(".png")
    others = [path for path in sorted(table.parent.glob("performance-*.csv")) if path != table]
    beside = "".join(f"\n\nElsewhere: [{path.stem}]({path.stem}.md)." for path in others)
    table.with_suffix(".md").write_text(render_tables(rows, heading + beside, figure.name))
    render_plot(rows).savefig(figure)
    print(f"{table.with_suffix('.md')} and {figure} written")


if __name__ == "__main__":
    main()
