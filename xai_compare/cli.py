"""The console command."""

import argparse
import shlex
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ._comparison import Comparison
from ._listing import listing
from ._names import slug
from ._run_folder import RunFolder
from ._settings import NAMES, SEVERAL, DeviceError, Settings, from_mapping, read_file
from ._workers import StoppedError, WorkerError, is_main
from .arena import METHODS as ARENA_METHODS
from .arena import OUT as ARENA_FOLDER
from .arena import arena
from .compare import compare


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exits with 0 if the run is finished; 3 if it is, but a method and metric failed on every sample; 1 if it could not
    begin or a process of it died, 2 on a wrong option or device; 130 or 143 if it was stopped, and can go on.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    if args.list:
        _list(args)
        return
    if args.arena:
        _arena(args, shlex.join(["xai-compare", *given]))
        return
    out = Settings.out
    try:
        settings = _settings(args)
        out = settings.out
        comparison = compare(**vars(settings), command=shlex.join(["xai-compare", *given]))
    except (TypeError, ValueError, OSError) as error:
        begun = isinstance(error, OSError) and RunFolder(out).files.exists("run.json")
        _stop(f"{error} {_left(out)}" if begun else str(error), 2 if isinstance(error, DeviceError) else 1)
    except KeyboardInterrupt:
        _stop(f"Stopped. {_left(out)}", 130)
    except StoppedError as error:
        _stop(f"Stopped by {error} (another process of the run may have exited). {_left(out)}", 143)
    except WorkerError as error:
        _stop(f"The run stopped: {error}. {_left(out)}", 1)
    else:
        _end(comparison)


def _list(args: argparse.Namespace) -> None:
    try:
        for line in listing(_settings(args) if "model" in vars(args) or args.config else None):
            print(line, flush=True)
    except (TypeError, ValueError, OSError) as error:
        _stop(str(error), 2 if isinstance(error, DeviceError) else 1)


def _arena(args: argparse.Namespace, command: str) -> None:
    """Run the arena; only the settings that are given override its defaults."""
    try:
        settings = _settings(args)
        given = vars(args) | (read_file(args.config) if args.config else {})
        if tuple(settings.methods) == Settings.methods and "methods" not in given:
            settings = replace(settings, methods=ARENA_METHODS)
        if "out" not in given:
            settings = replace(settings, out=ARENA_FOLDER)
        table = arena(args.arena, **vars(settings), command=command)
    except (TypeError, ValueError, OSError) as error:
        _stop(str(error), 2 if isinstance(error, DeviceError) else 1)
    except KeyboardInterrupt:
        _stop("Stopped. What is finished is kept; run the same command again to continue.", 130)
    else:
        shown = table.pivot_table(index="method", columns=["task", "score"], values="mean", sort=False)
        print(shown.round(2).T.to_string())
        print(f"The score sheet: {settings.out}/arena.html, arena.csv, arena.md")


def _end(comparison: Comparison) -> None:
    if is_main():
        _tell(comparison)
    if comparison.failed_everywhere():
        sys.exit(3)


def _left(out: str) -> str:
    return f"Finished results are in {out}; run the same command again to continue."


def _stop(message: str, code: int) -> None:
    print(f"xai-compare: {message}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xai-compare",
        description="Compare explanation methods by many metrics, on your model and your data. Without arguments: on "
        "scenes of handwritten digits, with bundled weights.",
        argument_default=argparse.SUPPRESS,  # so that only what is given overrides the config file
    )
    for one in fields(Settings):
        if one.name != "options":
            _add(parser, one)
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME.KEY=VALUE",
        help=Settings.__dataclass_fields__["options"].metadata["help"],
    )
    parser.add_argument(
        "--config", type=Path, default=None, help="TOML or YAML file of settings; command-line options take precedence"
    )
    parser.add_argument(
        "--arena",
        nargs="?",
        const="all",
        default="",
        metavar="TASKS",
        help="run the methods on tasks whose answers are known: all, or comma-separated names of tasks or groups",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        default=False,
        help="list all methods and metrics, and what metrics need, and exit; with --model try which methods fit it",
    )
    return parser


def _add(parser: argparse.ArgumentParser, one: Field[Any]) -> None:
    """The command-line option of a setting."""
    kind: dict[str, Any] = {"type": int if one.type in (int, int | None) else str}
    if one.name in SEVERAL:
        kind = {"action": "append", "type": str}
    elif one.type is bool:
        kind = {"action": argparse.BooleanOptionalAction}
    elif "choices" in one.metadata:
        kind["metavar"] = "{" + ",".join(one.metadata["choices"]) + "}"
    text = f"{one.metadata['help']} (default: {one.metadata['shown']})"
    parser.add_argument(f"--{one.name.replace('_', '-')}", help=text, **kind)


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the config file, overridden by those of the command line."""
    line = {name: value for name, value in vars(args).items() if name in NAMES}
    given = from_mapping((read_file(args.config) if args.config else {}) | line, str(args.config or ""))
    options = {name: dict(values) for name, values in given.options.items()}
    for text in args.option:
        name, key, value = _option(text)
        options.setdefault(name, {})[key] = value
    return replace(given, options=options)


def _option(text: str) -> tuple[str, str, Any]:
    left, equals, value = text.partition("=")
    name, dot, key = left.partition(".")
    if not equals or not dot or not name or not key:
        raise ValueError(f"Expected --option NAME.KEY=VALUE, e.g. smooth-cdam.nt_samples=20; got {text!r}.")
    try:
        return slug(name), key.replace("-", "_"), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return slug(name), key.replace("-", "_"), value


def _tell(comparison: Comparison) -> None:
    facts = comparison.run
    summary = comparison.summary()
    models = list(facts["models"]) if "model" in summary else [""]
    for model in models:
        of_model = summary[summary.model == model] if model else summary
        table = of_model.pivot(index="method", columns="metric", values="mean")
        table = table.reindex(index=list(facts["methods"]), columns=list(facts["metrics"]))
        table["forwards"] = of_model.groupby("method").explain_forwards.first()
        print(*[f"{model}:"] * bool(model), _text(table), sep="\n")
    arrows = {"higher": "higher is better", "lower": "lower is better", "": "no direction is better"}
    print("; ".join(f"{name}: {arrows[about['direction']]}" for name, about in facts["metrics"].items()))
    _tell_of_failures(comparison)


def _text(table: pd.DataFrame) -> str:
    """A table of numbers as text."""
    return table.round(3).rename_axis(index=None, columns=None).to_string()


def _tell_of_failures(comparison: Comparison) -> None:
    scores, skipped = comparison.scores(), comparison.skipped()
    for row in skipped.itertuples(index=False):
        print(f"skipped {row.name}{_for(row)}: {row.error}")
    for name, model in comparison.run["models"].items():
        for method, reason in model["unfit"].items():
            print(f"left out {method} for {name}, which it does not fit: {reason}")
    failed = scores.dropna(subset=["error"])
    cells = [name for name in ("model", "method", "metric") if name in failed]
    for cell, rows in failed.groupby(cells, sort=False):
        print(f"failed {len(rows)} x {' '.join(map(str, cell))}: {rows.error.iloc[0]}")
    print(
        f"{scores['sample'].nunique()} samples, {len(scores)} scores, {len(failed)} failed, {len(skipped)} samples "
        f"skipped; {comparison.report()}"
    )


def _for(row: Any) -> str:
    return f" for {row.model}" if hasattr(row, "model") else ""
