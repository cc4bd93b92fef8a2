"""The console command."""

import argparse
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._comparison import Comparison
from ._methods import methods
from ._metrics import metrics, our_metrics
from ._names import slug
from ._settings import METHODS, METRICS, names_in, read_file
from ._workers import StoppedError, WorkerError, is_main
from .compare import compare

_HELP = {
    "model": "digits, timm:NAME, torchvision:NAME, transformers:NAME or python:MODULE:FUNCTION (digits)",
    "checkpoint": "a file of weights to load, .safetensors or of torch.save",
    "data": "a folder of images, digits, or python:MODULE:FUNCTION",
    "methods": f"names with commas; NAME=METHOD calls one by another name ({','.join(METHODS)})",
    "metrics": f"names with commas; all: this project's ({','.join(METRICS)})",
    "targets": "which class is explained: predicted or label (predicted; of digits the label)",
    "limit": "how many samples (all; of digits 100)",
    "seed": "of everything that is drawn (0)",
    "device": "as torch names it (the best there is)",
    "dtype": "of the model: float32, float64, bfloat16 or float16 (as it is)",
    "batch-size": "how many samples are explained at once; a kill loses at most so many (16)",
    "forward-batch": "how many perturbed images pass the model at once (64)",
    "gallery": "how many samples the report shows (12)",
    "resamples": "of the bootstrap (2000)",
}
_NUMBERS = {"limit", "seed", "batch-size", "forward-batch", "gallery", "resamples"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends with 1 if the run could not begin, 130 or 143 if it was stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    if args.list:
        print(_listed())
        return
    command = shlex.join(["xai-compare", *given])
    out = args.out
    try:
        settings = _settings(args)
        out = Path(settings.pop("out", "xai-compare-run"))
        comparison = compare(**settings, out=out, command=command)
    except (TypeError, ValueError, OSError) as error:
        begun = isinstance(error, OSError) and (Path(out or ".") / "run.json").exists()
        _stop(f"{error} {_left(out)}" if begun else str(error), 1)
    except KeyboardInterrupt:
        _stop(f"Stopped. {_left(out)}", 130)
    except StoppedError as error:
        _stop(f"Stopped by {error}, as when another process of the run has ended. {_left(out)}", 143)
    except WorkerError as error:
        _stop(f"The run ended, as {error}. {_left(out)}", 1)
    else:
        if is_main():
            _tell(comparison)


def _left(out: Path | str) -> str:
    return f"What is finished is in {out}; the same command goes on from there."


def _stop(message: str, code: int) -> None:
    print(f"xai-compare: {message}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xai-compare",
        description="Compare explanation methods by many scores, on your model and your data. Without arguments: on "
        "scenes of handwritten digits, with bundled weights. Defaults are in parentheses.",
    )
    for name, text in _HELP.items():
        parser.add_argument(f"--{name}", help=text, type=int if name in _NUMBERS else str)
    parser.add_argument("--pretrained", action=argparse.BooleanOptionalAction, help="load the library's weights (no)")
    parser.add_argument("--out", help="the run's folder (xai-compare-run)")
    parser.add_argument("--config", type=Path, help="a .toml or .yaml file with any of these; the line goes before it")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME.KEY=VALUE",
        help="an argument of a method or metric, or of what makes the model or data; may be given many times",
    )
    parser.add_argument("--list", action="store_true", help="name all methods and metrics, and end")
    return parser


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if args.config is not None:
        settings = {str(name).replace("-", "_"): value for name, value in read_file(args.config).items()}
    line = vars(args)
    settings |= {
        name: line[name]
        for name in (*(one.replace("-", "_") for one in _HELP), "pretrained", "out")
        if line[name] is not None
    }
    for name in ("methods", "metrics"):
        if name in settings:
            settings[name] = names_in(settings[name], name)
    given = settings.get("options", {})
    if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
        raise TypeError(f"Expected `options` in {args.config} to hold a table for each name, got {given!r}.")
    options = {slug(name): dict(values) for name, values in given.items()}
    for text in args.option:
        name, key, value = _option(text)
        options.setdefault(name, {})[key] = value
    return settings | {"options": options}


def _option(text: str) -> tuple[str, str, Any]:
    left, equals, value = text.partition("=")
    name, dot, key = left.partition(".")
    if not equals or not dot or not name or not key:
        raise ValueError(f"Expected --option NAME.KEY=VALUE, as smooth-cdam.nt_samples=20; got {text!r}.")
    try:
        return slug(name), key.replace("-", "_"), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return slug(name), key.replace("-", "_"), value


def _listed() -> str:
    lines = ["Methods:", *(f"  {name:18} {method.source}" for name, method in methods().items()), "", "Metrics:"]
    ours = set(our_metrics())
    found = metrics()
    for name in [*(n for n in found if n in ours), *(n for n in found if n not in ours)]:
        cls = found[name]
        lines.append(f"  {name:32} {cls.__module__.split('.')[0]}.{cls.__name__}")
    return "\n".join(lines)


def _tell(comparison: Comparison) -> None:
    facts = comparison.run
    summary = comparison.summary()
    table = summary.pivot(index="method", columns="metric", values="mean")
    table = table.reindex(index=list(facts["methods"]), columns=list(facts["metrics"]))
    table["forwards"] = summary.groupby("method").explain_forwards.first()
    print(table.round(3).rename_axis(index=None, columns=None).to_string())
    arrows = {"higher": "higher is better", "lower": "lower is better", "": "no direction is better"}
    print("; ".join(f"{name}: {arrows[about['direction']]}" for name, about in facts["metrics"].items()))
    scores, skipped = comparison.scores(), comparison.skipped()
    for name, error in zip(skipped.name, skipped.error, strict=True):
        print(f"skipped {name}: {error}")
    failed = scores.dropna(subset=["error"])
    for (method, metric), rows in failed.groupby(["method", "metric"], sort=False):
        print(f"failed {len(rows)} x {method} {metric}: {rows.error.iloc[0]}")
    print(
        f"{scores['sample'].nunique()} samples, {len(scores)} scores, {len(failed)} failed, {len(skipped)} samples "
        f"skipped; {comparison.report()}"
    )
