"""The console command: explain images, texts and answers, serve the page, list models, compare methods."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from ._command_line import command_parser, question_of, request_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Exits with 0 if it is done; 1 if it could not be done, with the reason; 2 on a wrong option; 130 if it was stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        from xai_compare.cli import main as compare

        compare(given[1:])
        return
    asked = command_parser().parse_args(given)
    try:
        for line in _DO[asked.command](asked):
            print(line, flush=True)
    except (TypeError, ValueError, OSError, ImportError) as error:
        _stop(str(error).replace("`images=False`", "--words-only"), 1)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        _stop(f"{error} Try --device cpu; for answers also --dtype bfloat16 or a smaller --max-new-tokens.", 1)
    except KeyboardInterrupt:
        _stop("Stopped.", 130)


def _listed(asked: argparse.Namespace) -> Iterator[str]:
    from ._models import listed  # takes seconds

    return listed(asked.pattern)


def _explained(asked: argparse.Namespace) -> Iterator[str]:
    """Lines about the result."""
    if "ask" in asked:
        question = question_of(asked)
        _say("Starting torch and transformers ...")
        from ._explain import explained

        return explained(question, _say)
    request = request_of(asked)
    _say("Starting torch ...")
    if request.text_file is not None:
        from ._texts import explained_texts

        return explained_texts(request, _say)
    from ._images import explained_images

    return explained_images(request, _say)


def _served(asked: argparse.Namespace) -> Iterator[str]:
    """Nothing until the page is closed, but for its address."""
    _say("Starting torch and gradio ...")
    from .app import build, serve

    models = asked.model or ["digits"]
    page = build(models, pretrained=asked.pretrained, device=asked.device, any_model=asked.any_model)
    if asked.host not in _OWN:
        _say(f"All who reach {asked.host} can open this page: there is no password.")
    serve(page, asked.host, asked.port, browser=asked.browser, say=_say)
    return iter(())


_DO = {"models": _listed, "explain": _explained, "app": _served}
_OWN = ("127.0.0.1", "localhost", "::1")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _stop(message: str, code: int) -> None:
    _say(f"xai-discern: {message}")
    sys.exit(code)
