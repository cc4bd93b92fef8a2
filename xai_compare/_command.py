"""What the console command does, once its options are known."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ._compare import compare
from ._comparison import Comparison
from ._listing import listing
from ._run_folder import RunFolder
from ._settings import DeviceError, Settings, read_file
from ._workers import StoppedError, WorkerError, is_main
from .known_answers import METHODS as ARENA_METHODS
from .known_answers import OUT as ARENA_FOLDER
from .known_answers import arena


def run(settings: Settings, args: argparse.Namespace, given: Sequence[str]) -> None:
    """Do what the options say, and exit with another code than 0 if it was not done."""
    command = shlex.join(["xai-compare", *given])
    if args.list:
        _list(settings if "model" in vars(args) or args.config else None)
        return
    if args.arena:
        _arena(settings, args, command)
        return
    try:
        comparison = compare(**vars(settings), command=command)
    except (TypeError, ValueError, OSError) as error:
        begun = isinstance(error, OSError) and RunFolder(settings.out).files.exists("run.json")
        _stop(f"{error} {_left(settings.out)}" if begun else str(error), 2 if isinstance(error, DeviceError) else 1)
    except KeyboardInterrupt:
        _stop(f"Stopped. {_left(settings.out)}", 130)
    except StoppedError as error:
        _stop(f"Stopped by {error} (another process of the run may have exited). {_left(settings.out)}", 143)
    except WorkerError as error:
        _stop(f"The run stopped: {error}. {_left(settings.out)}", 1)
    else:
        _end(comparison)


def _list(settings: Settings | None) -> None:
    try:
        for line in listing(settings):
            print(line, flush=True)
    except (TypeError, ValueError, OSError) as error:
        _stop(str(error), 2 if isinstance(error, DeviceError) else 1)


def _arena(settings: Settings, args: argparse.Namespace, command: str) -> None:
    """Run the arena; only the settings that are given override its defaults."""
    given = vars(args) | (read_file(args.config) if args.config else {})
    if tuple(settings.methods) == Settings.methods and "methods" not in given:
        settings = replace(settings, methods=ARENA_METHODS)
    if "out" not in given:
        settings = replace(settings, out=ARENA_FOLDER)
    try:
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
    """What a stopped run has."""
    try:
        scored = bool(RunFolder(out).files.names("scores.parquet"))
    except OSError:
        scored = False
    kept = f"Finished scores are kept in {out}" if scored else f"Nothing was scored yet in {out}"
    return f"{kept}; run the same command again to continue."


def _stop(message: str, code: int) -> None:
    print(f"xai-compare: {message}", file=sys.stderr)
    sys.exit(code)


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
