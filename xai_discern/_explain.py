"""Asking a model, explaining its answer, and writing what was found."""

import json
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    RelevancePropagation,
    SmoothCDAM,
    TokenAblation,
)
from captum_ext.answer_maps import AnswerMaps
from xai_compare._pictures import as_rgb, opened
from xai_compare.questions.language_model import asked, loaded, seen_image

from ._question import Method, Question

_METHODS: dict[Method, Any] = {
    "cdam": CDAM,
    "smooth-cdam": SmoothCDAM,
    "integrated-cdam": IntegratedCDAM,
    "token-ablation": TokenAblation,
    "attention": AttentionMap,
    "relevance": RelevancePropagation,
    "rollout": AttentionRollout,
}
_VERSIONS = ("xai-discern", "torch", "transformers", "captum")


def explained(question: Question, say: Callable[[str], None]) -> Iterator[str]:
    """Explain the answer to a question, and write `answer.html`, `answer.json` and arrays.

    Args:
        question: The question.
        say: Takes lines about the progress.

    Yields:
        Lines about the result.
    """
    image = None if question.image is None else as_rgb(opened(question.image))
    say(f"Loading {question.model} ...")
    model, processor = loaded(question.model, image is not None, question.device, question.dtype)
    inputs, template = asked(model, processor, question.ask, image)
    say(f"Asking, and explaining the answer by {question.method} ...")
    maps = _maps(_METHODS[question.method](model), inputs, processor, question)
    shown = None if image is None else seen_image(processor, inputs, image)
    fits = shown is not None and len(maps.images) == 1
    question.out.mkdir(parents=True, exist_ok=True)
    page = question.out / "answer.html"
    maps.html([shown] if fits else (), page)
    facts = _facts(question, maps, inputs, processor) | {"chat_template": template, "arrays": _arrays(question, maps)}
    (question.out / "answer.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
    yield f"Answer: {facts['answer']}"
    yield f"Its tokens: {' | '.join(maps.answer_tokens[0])}"
    yield f"On the first token {facts['first_share']:.1%} of the absolute relevance, on special tokens " + (
        f"{facts['special_share']:.1%}; excluded: {', '.join(question.exclude) or 'nothing'}."
    )
    if image is not None and not fits:
        unknown = "Which places of the image the tokens stand for is not known: the page shows maps without the image."
        yield unknown if maps.images else "The page has no map of the image."
    yield f"Page: {page}"


def _maps(explainer: Any, inputs: dict[str, Any], processor: Any, question: Question) -> AnswerMaps:
    """Of the given answer, or of what the model generates."""
    options: dict[str, Any] = {"tokenizer": processor, "score": question.score, "exclude": question.exclude}
    options |= {"images": not question.words_only}
    answer: Any = question.answer
    if answer is None:
        generated: AnswerMaps = explainer.explain_generation(inputs, question.max_new_tokens, **options)
        if question.against is None:
            return generated
        answer = generated.answer_ids[0]
    maps: AnswerMaps = explainer.attribute_answer(inputs, answer, question.against, **options)
    return maps


def _facts(question: Question, maps: AnswerMaps, inputs: dict[str, Any], processor: Any) -> dict[str, Any]:
    """What `answer.json` says; docs/answers.md describes it."""
    images = {at: number for number, own in enumerate(maps.image_numbers[0]) for at in own}
    special = maps.excluded[0] & False if maps.special is None else maps.special[0]
    rows = zip(
        inputs["input_ids"][0].tolist(),
        maps.tokens[0],
        maps.scores[0].tolist(),
        special.tolist(),
        maps.excluded[0].tolist(),
        strict=True,
    )
    return {
        "model": question.model,
        "image": None if question.image is None else str(question.image),
        "ask": question.ask,
        "answer": processor.decode(maps.answer_ids[0], skip_special_tokens=True),
        "generated": question.answer is None,
        "answer_tokens": [
            {"id": i, "token": t} for i, t in zip(maps.answer_ids[0], maps.answer_tokens[0], strict=True)
        ],
        "against_tokens": maps.against_tokens[0] if maps.against_tokens else [],
        "method": maps.method,
        "explained": maps.score,
        "way": maps.way,
        "exclude": list(question.exclude),
        "first_share": float(maps.first_share[0]),
        "special_share": float(maps.special_share[0]),
        "prompt_tokens": [
            {"id": i, "token": token, "score": score, "special": special, "excluded": excluded, "image": images.get(at)}
            for at, (i, token, score, special, excluded) in enumerate(rows)
        ],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
    }


def _arrays(question: Question, maps: AnswerMaps) -> dict[str, list[int]]:
    """Write the maps; their files and shapes. Those of an earlier call are removed."""
    found: dict[str, Tensor] = {"scores": maps.scores[0]}
    if maps.per_token is not None:
        found["per_token"] = maps.per_token[0]
    for name, images in (("image", maps.images), ("image_per_token", maps.images_per_token)):
        found |= {f"{name}_{number}": one for number, own in enumerate(images) if (one := own[0]) is not None}
    for old in _earlier(question):
        (question.out / old).unlink(missing_ok=True)
    for name, values in found.items():
        np.save(question.out / f"{name}.npy", values.float().cpu().numpy())
    return {f"{name}.npy": list(values.shape) for name, values in found.items()}


def _earlier(question: Question) -> list[str]:
    """The arrays that an earlier call wrote here, as it says itself."""
    try:
        listed = json.loads((question.out / "answer.json").read_text("utf-8"))["arrays"]
        return [name for name in listed if name == f"{Path(name).stem}.npy"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
