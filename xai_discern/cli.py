"""The console command: explain an answer of a model, or compare methods."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ._question import Excluded, Method, Question, Score

_COMPARE = "compare explanation methods by many metrics, on your model and your data (the command xai-compare)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exits with 0 if it is done; 1 if it could not be done, with the reason; 2 on a wrong option; 130 if it was stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        from xai_compare.cli import main as compare

        compare(given[1:])
        return
    question = Question(**vars(_parser().parse_args(given)))
    try:
        _explain(question)
    except (TypeError, ValueError, OSError, ImportError) as error:
        _stop(str(error).replace("`images=False`", "--words-only"), 1)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        _stop(f"{error} Try --device cpu, --dtype bfloat16 or a smaller --max-new-tokens.", 1)
    except KeyboardInterrupt:
        _stop("Stopped.", 130)


def _explain(question: Question) -> None:
    _say("Starting torch and transformers ...")
    from ._explain import explained  # takes seconds

    for line in explained(question, _say):
        print(line)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _stop(message: str, code: int) -> None:
    _say(f"xai-discern: {message}")
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xai-discern", description="Explain what a model answers.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("compare", help=_COMPARE, add_help=False)
    _add_explain(commands.add_parser("explain", help="explain the answer of a language model", description=_EXPLAIN))
    return parser


_EXPLAIN = """Ask a model of transformers a question, about an image or in words alone, and write a page on which each
token of its answer lights up the words and the places of the image that are evidence for it."""


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", nargs="?", type=_file, metavar="IMAGE", help="an image file; without it the question is text only")
    add("--model", required=True, type=_model, metavar="transformers:NAME", help="a name on the hub, or a local folder")
    add("--ask", required=True, type=_text, metavar="TEXT", help="the question; the chat template is applied, if any")
    add("--answer", type=_text, metavar="TEXT", help="explain this answer; without it, what the model generates")
    add("--against", type=_text, metavar="TEXT", help="explain why the answer is preferred to this one")
    add("--max-new-tokens", type=_positive, default=20, metavar="N", help="the longest answer (default: 20)")
    add("--method", choices=get_args(Method), default="cdam", help="the method (default: cdam)")
    add("--score", choices=get_args(Score), default="logit", help="what is explained of each token (default: logit)")
    add(
        "--exclude",
        type=_excluded,
        default=(),
        metavar="{first,special}",
        help="set the scores of the first token, of special tokens, or of both (first,special) to 0, and say so",
    )
    add("--words-only", action="store_true", help="no map of the image, for models whose image tokens lie on no grid")
    add("--out", type=Path, default=Path("explanation"), metavar="FOLDER", help="where to write (default: explanation)")
    add("--device", default="", help="such as cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights")


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def _model(text: str) -> str:
    kind, _, name = text.partition(":")
    if kind != "transformers" or not name:
        raise argparse.ArgumentTypeError(f"expected transformers:NAME or transformers:FOLDER, got {text!r}")
    return name


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected some text, got none")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _excluded(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(get_args(Excluded)):
        raise argparse.ArgumentTypeError(f"expected first, special or first,special; got {text!r}")
    return names
