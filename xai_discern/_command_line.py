"""The options of the console command, and what they ask for."""

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from xai_compare._command_line import Parser

from ._question import Excluded, Method, Question, Score
from ._request import Request

_COMPARE = "compare explanation methods by many metrics, on your model and your data (the command xai-compare)"
_EXPLAIN = """Show which parts of images speak for, and against, each class that a model can predict: writes the most
probable classes, a picture for each image, the maps as arrays, and explanation.json. With --text-file: which words of
texts do. With --ask: which words and places of the prompt speak for what a language model answers."""
_KINDS = ("timm", "torchvision", "transformers", "digits", "python")
_PORTS = 65535
_MODEL = "timm:NAME, torchvision:NAME, transformers:NAME, or a folder that timm or transformers saved"


def command_parser() -> Parser:
    """The parser of the whole command."""
    parser = Parser(prog="xai-discern", description="Show what models see in images, texts and questions.")
    parser.add_argument("--version", action="version", version=f"xai-discern {version('xai-discern')}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    commands.add_parser("compare", help=_COMPARE, add_help=False)
    models = commands.add_parser("models", help="list what can be explained, and how; find names of models")
    models.add_argument("pattern", nargs="?", default="", metavar="PATTERN|MODEL", help=_PATTERN)
    _add_app(commands.add_parser("app", help=_APP, description=_APP_AT_LENGTH))
    explain = commands.add_parser(
        "explain",
        help="explain images, texts, or the answer of a language model",
        description=_EXPLAIN,
        argument_default=argparse.SUPPRESS,  # so that only what was given is there
    )
    explain.set_defaults(parser=explain)
    _add_common(explain)
    _add_classes(explain.add_argument_group("classes, concepts and texts"))
    _add_answers(explain.add_argument_group("answers of language models"))
    return parser


_APP = "explain images on a page in your browser"
_APP_AT_LENGTH = """Explain images on a page in your browser: drop a picture, choose classes, a concept's pictures or a
text, and methods, and read the maps. Only this machine can open the page unless --host says otherwise; no picture is
stored."""


def _add_app(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(parser=parser)
    add("--model", action="append", type=_model, metavar="MODEL", help=f"repeatable (default: digits). {_MODEL}")
    add("--pretrained", action=argparse.BooleanOptionalAction, default=None, help=_PRETRAINED)
    add("--any-model", action="store_true", help="users of the page may name other models of the libraries")
    add("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1); 0.0.0.0 lets your network in")
    add("--port", type=_port, default=7860, metavar="N", help="default: 7860")
    add("--device", default="", help="such as cpu or cuda (default: cuda if there is one)")
    add("--browser", action="store_true", help="open the page in your browser")


_PATTERN = "a part of a model's name, to find it; or a model as timm:NAME, to see how it is explained"


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", type=_there, metavar="IMAGE", help="image files, or folders of them")
    add("--model", required=True, type=_model, metavar="MODEL", help=_MODEL)
    add("--method", metavar="NAMES", help="names as in `xai-compare --list`, separated by commas (default: cdam)")
    add("--out", type=Path, metavar="FOLDER", help="where to write (default: explanation)")
    add("--device", help="such as cpu or cuda (default: cuda if there is one)")


def _add_classes(group: Any) -> None:
    add = group.add_argument
    add("--class", action="append", metavar="NAME|ID", help="repeatable (default: the predicted class)")
    add("--vs", metavar="NAME", help="explain why the class, and not this one; with --text another text")
    add("--concept", action="append", type=_folder, metavar="FOLDER", help=_CONCEPT)
    add("--text", action="append", type=_text, metavar="TEXT", help=_TEXT)
    add("--text-file", type=_file, metavar="FILE", help="explain texts, one in each line, not images")
    add("--pretrained", action=argparse.BooleanOptionalAction, help=_PRETRAINED)
    add("--checkpoint", type=_file, metavar="FILE", help="weights to load: .safetensors, or saved by torch.save")
    add("--top", type=_positive, metavar="N", help="how many of the most probable classes are listed (default: 5)")
    add("--seed", type=int, metavar="N", help="of methods that draw random numbers (default: 0)")


_CONCEPT = "explain the nearness to what the images of a folder share; repeatable"
_TEXT = "explain the nearness to a text, of models such as CLIP and SigLIP; repeatable"
_PRETRAINED = "load the library's weights (default: those of transformers and of folders only)"


def _add_answers(group: Any) -> None:
    add = group.add_argument
    add("--ask", type=_text, metavar="TEXT", help="the question; the chat template is applied, if any")
    add("--answer", type=_text, metavar="TEXT", help="explain this answer; without it, what the model generates")
    add("--against", type=_text, metavar="TEXT", help="explain why the answer is preferred to this one")
    add("--max-new-tokens", type=_positive, metavar="N", help="the longest answer (default: 20)")
    add("--score", choices=get_args(Score), help="what is explained of each token (default: logit)")
    add("--exclude", type=_excluded, metavar="{first,special}", help=_EXCLUDE)
    add("--words-only", action="store_true", help="no map of the image, for models whose image tokens lie on no grid")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights (default: auto)")


_EXCLUDE = "set the scores of the first token, of special tokens, or of both (first,special) to 0, and say so"
_OF_CLASSES = ("class", "vs", "concept", "text", "text_file", "pretrained", "checkpoint", "top", "seed")
_OF_ANSWERS = ("answer", "against", "max_new_tokens", "score", "exclude", "words_only", "dtype")


def _refuse(parser: argparse.ArgumentParser, given: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    """Exit if an option of another task was given."""
    wrong = next((name for name in names if name in given), None)
    if wrong is not None:
        parser.error(f"--{wrong.replace('_', '-')} {why}")


def question_of(asked: argparse.Namespace) -> Question:
    """The question to a language model; exits with 2 if options do not fit."""
    given = dict(vars(asked))
    parser: argparse.ArgumentParser = given["parser"]
    _refuse(parser, given, _OF_CLASSES, "is for classes and concepts: it cannot be given with --ask")
    images, method, model = given.get("images", []), given.get("method", "cdam"), given["model"]
    if len(images) > 1 or any(path.is_dir() for path in images):
        parser.error("expected at most one image file with --ask")
    if method not in get_args(Method):
        parser.error(f"argument --method: with --ask, invalid choice: {method!r} (choose from {', '.join(_METHODS)})")
    kind, _, name = model.partition(":")
    if kind != "transformers" and not Path(model).is_dir():
        parser.error(f"argument --model: with --ask, expected transformers:NAME or transformers:FOLDER, got {model!r}")
    return Question(
        name if kind == "transformers" else model,
        given["ask"],
        images[0] if images else None,
        given.get("answer"),
        given.get("against"),
        given.get("max_new_tokens", 20),
        method,
        given.get("score", "logit"),
        given.get("exclude", ()),
        given.get("words_only", False),
        given.get("out", Path("explanation")),
        given.get("device", ""),
        given.get("dtype", "auto"),
    )


_METHODS = get_args(Method)


def request_of(asked: argparse.Namespace) -> Request:
    """What is asked about images or texts; exits with 2 if options do not fit."""
    given = dict(vars(asked))
    parser: argparse.ArgumentParser = given["parser"]
    _refuse(parser, given, _OF_ANSWERS, "is for answers of language models: give --ask, too")
    images, text_file = tuple(given.get("images", ())), given.get("text_file")
    if bool(images) == (text_file is not None):
        parser.error("expected images, or --text-file, or --ask" if not images else "--text-file takes no images")
    texts, classes, concepts = (tuple(given.get(name, ())) for name in ("text", "class", "concept"))
    if texts and (classes or concepts):
        parser.error("--text is for models that compare images with texts, and have no classes: give one or the other")
    if concepts and not classes and "vs" in given:
        parser.error("--vs is for classes and texts: a concept is explained by itself")
    if text_file and (texts or concepts):
        parser.error(f"{'--text' if texts else '--concept'} is for images, not for --text-file")
    kind = given["model"].partition(":")[0]
    if (texts or text_file) and kind != "transformers" and not Path(given["model"]).is_dir():
        parser.error(f"argument --model: for texts, expected transformers:NAME or a folder, got {given['model']!r}")
    return Request(
        images,
        text_file,
        given["model"],
        given.get("pretrained"),
        str(given.get("checkpoint", "")),
        classes,
        given.get("vs"),
        concepts,
        texts,
        tuple(given.get("method", "cdam").split(",")),
        given.get("top", 5),
        given.get("out", Path("explanation")),
        given.get("device", ""),
        given.get("seed", 0),
    )


def _there(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def _model(text: str) -> str:
    kind, _, name = text.partition(":")
    if kind not in _KINDS and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"expected {_MODEL}; got {text!r}. `xai-discern models {name or text}` finds names"
        )
    return text


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected some text, got none")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _PORTS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_PORTS}, got {text!r}")
    return int(text)


def _excluded(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(get_args(Excluded)):
        raise argparse.ArgumentTypeError(f"expected first, special or first,special; got {text!r}")
    return names
