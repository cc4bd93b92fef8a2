"""The options of the console command, and the settings that they make."""

import argparse
import tomllib
from dataclasses import Field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ._names import close_names, slug
from ._settings import NAMES, SEVERAL, Settings, from_mapping, read_file

_QUICK = {"limit": 8, "resamples": 200}


class Parser(argparse.ArgumentParser):
    """A parser that names close options where one is not known."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(found, "parser", self)
            known = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001
            close = close_names(unknown[0].partition("=")[0], known) if unknown[0].startswith("-") else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{close}")
        return found


def parser() -> Parser:
    """The parser of `xai-compare`."""
    made = Parser(
        prog="xai-compare",
        description="Compare explanation methods by many metrics, on your model and your data. Without arguments: on "
        "scenes of handwritten digits, with bundled weights.",
        argument_default=argparse.SUPPRESS,  # so that only what is given overrides the config file
    )
    made.add_argument("--version", action="version", version=f"xai-discern {version('xai-discern')}")
    for one in fields(Settings):
        if one.name != "options":
            _add(made, one)
    made.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME.KEY=VALUE",
        help=Settings.__dataclass_fields__["options"].metadata["help"],
    )
    made.add_argument(
        "--config", type=Path, default=None, help="TOML or YAML file of settings; command-line options take precedence"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        default=False,
        help=f"a first look: {_QUICK['limit']} samples, and few resamples, where --limit and --resamples do not say "
        "other numbers; the same command without it goes on to all samples",
    )
    made.add_argument(
        "--arena",
        nargs="?",
        const="all",
        default="",
        metavar="TASKS",
        help="run the methods on tasks whose answers are known: all, or comma-separated names of tasks or groups",
    )
    made.add_argument(
        "--list",
        action="store_true",
        default=False,
        help="list all methods and metrics, and what metrics need, and exit; with --model try which methods fit it",
    )
    return made


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


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the config file, overridden by those of the command line."""
    line = {name: value for name, value in vars(args).items() if name in NAMES}
    quick = _QUICK if args.quick else {}
    given = from_mapping(quick | (read_file(args.config) if args.config else {}) | line, str(args.config or ""))
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
