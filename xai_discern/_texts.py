"""Explaining texts: what a model says of each, and the words that speak for and against a class."""

from collections.abc import Callable, Iterator
from importlib.resources import files
from textwrap import shorten
from typing import Any

import torch
from jinja2 import Environment

from adapters.models import output_tensor
from xai_compare._isolation import said
from xai_compare._methods import methods_named
from xai_compare._seeding import seeded_for
from xai_compare._text_file import lines_of, text_of

from ._facts import plain, shown, write_facts
from ._picture import robust_scale
from ._request import Request
from ._subject import text_model, top
from ._targets import asked_classes, explains_tokens, maps_of_tokens, notes_on_maps

_LETTERS = 100  # of a text, in what is printed
_NO_LIMIT = 10**9  # what tokenizers have in place of a limit is larger


def explained_texts(request: Request, say: Callable[[str], None]) -> Iterator[str]:
    """Explain the texts of a file, a line each, and write `explanation.json` and `texts.html`.

    Args:
        request: What is asked.
        say: Takes lines about the progress.

    Yields:
        Lines about the result.

    Raises:
        ValueError: if the request does not fit the model, or the file has no texts.
    """
    assert request.text_file is not None  # noqa: S101 # the command has seen to it
    texts = lines_of(text_of(request.text_file))
    if not texts:
        raise ValueError(f"Expected a text in each line of {request.text_file}, got none.")
    methods = methods_named(request.methods)
    unfit = [name for name, method in methods.items() if not explains_tokens(method.make)]
    if unfit:
        raise ValueError(f"The method {unfit[0]} explains images; of texts use --method cdam.")
    say(f"Loading {request.model} ...")
    model, tokenizer, labels = text_model(request)
    request.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    try:
        for number, text in enumerate(texts, start=1):
            say(f"Text {number} of {len(texts)} ...")
            try:
                found.append(_explained(text, model, tokenizer, labels, request, methods))
                best = found[-1]["top"][0]
                yield f"{shown(best):>7}  {best['name']}: {shorten(text, _LETTERS)}"
                yield from (f"  Note: {note}" for note in found[-1]["notes"])
            except Exception as error:
                if len(texts) == 1:
                    raise plain(error) from error
                found.append({"text": text, "error": said(error)})
                yield f"{shorten(text, _LETTERS)}: skipped: {error}"
    finally:  # also where it was stopped
        about = {"name": request.model, "weights": "pretrained", "classes": len(labels)}
        write_facts(request.out, about, texts=found)
        template = files("xai_discern").joinpath("texts.html").read_text("utf-8")
        page = Environment(autoescape=True).from_string(template).render(model=request.model, texts=found, shown=shown)
        (request.out / "texts.html").write_text(page, "utf-8")
    if all("error" in one for one in found):
        raise ValueError("No text could be explained.")
    yield f"Page: {request.out / 'texts.html'}"


def _explained(text: str, model: Any, tokenizer: Any, labels: Any, request: Request, methods: Any) -> dict[str, Any]:
    """What `explanation.json` says of a text."""
    known = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    limits = [one for one in known if one is not None and one < _NO_LIMIT]
    cut = {"truncation": True, "max_length": min(limits)} if limits else {}
    encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, **cut)
    ids = torch.tensor([encoded["input_ids"]], device=model.device)
    with torch.no_grad():
        outputs = output_tensor(model(ids)).float()
    asked = asked_classes(request, outputs, labels)
    maps = []
    with notes_on_maps() as notes:
        for name, method in methods.items():
            with seeded_for(request.seed, "explain", 0):
                scores = maps_of_tokens(method.make(model), ids, asked)
            scale = robust_scale(scores)
            maps += [
                {"method": name, "target": one.facts, "scores": row.tolist(), "scale": scale}
                for one, row in zip(asked, scores, strict=True)
            ]
    return {
        "text": text,
        "top": top(model, outputs, labels, request.top),
        "tokens": _pieces(text, tokenizer, encoded),
        "cut": len(tokenizer(text)["input_ids"]) - len(encoded["input_ids"]),
        "maps": maps,
        "notes": notes,
    }


def _pieces(text: str, tokenizer: Any, encoded: Any) -> list[str]:
    """The piece of the text that each token is; of special tokens their name."""
    names: list[str] = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    spans = encoded.get("offset_mapping") or [(0, 0)] * len(names)
    return [text[first:last] or name for name, (first, last) in zip(names, spans, strict=True)]
