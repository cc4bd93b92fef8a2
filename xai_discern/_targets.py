"""From the names of classes, concepts and texts to what is explained."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_ext import ConceptTarget, ContrastTarget, PartialMapWarning, TextTarget
from captum_ext._attention_attribution import AttentionAttribution
from xai_compare._classes import matches
from xai_compare._names import close_names, slug

from ._request import Request

Facts = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What one map explains.

    Attributes:
        key: For names of files.
        title: For pictures.
        facts: What `explanation.json` says of it.
        target: As this project's methods take it.
        plain: As all methods take it: a class, or a function of a sample's output; None: they cannot.
    """

    key: str
    title: str
    facts: Facts
    target: Any
    plain: int | Callable[[Tensor], Tensor] | None = None


def class_number(text: str, labels: Sequence[str], count: int) -> int:
    """The class that a name or a number means.

    Raises:
        ValueError: if there is none, or if there are several.
    """
    found = matches(text, labels)
    if text.isdecimal() and not found:
        found = [int(text)] if int(text) < count else []
        if not found:
            raise ValueError(f"Expected a class from 0 to {count - 1}, got {text}.")
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{text!r} is the name of several classes, {', '.join(map(str, found))}: give the number.")
    if not labels:
        raise ValueError(f"The names of the model's {count} classes are not known: give a number, got {text!r}.")
    known = dict.fromkeys(part.strip() for label in labels for part in str(label).split(","))
    raise ValueError(f"None of the model's {count} classes is called {text!r}{close_names(text, known)}.")


def class_named(number: int, labels: Sequence[str]) -> str:
    """A class for people: its name, or its number where none is known."""
    return str(labels[number]) if number < len(labels) else f"class {number}"


def of_class(number: int, labels: Sequence[str], against: int | None) -> Asked:
    """A class, or why it and not another."""
    name = class_named(number, labels)
    facts: Facts = {"kind": "class", "class": number, "name": name}
    if against is None:
        return Asked(str(number), name, facts, number, number)
    other = class_named(against, labels)
    facts |= {"against": against, "against_name": other}

    def difference(output: Tensor) -> Tensor:
        return output[..., number] - output[..., against]

    return Asked(f"{number}-vs-{against}", f"{name}, not {other}", facts, ContrastTarget(number, against), difference)


def asked_classes(request: Request, outputs: Tensor, labels: Sequence[str]) -> list[Asked]:
    """The classes of a request, else the predicted one, of outputs (1, classes).

    Raises:
        ValueError: if a name is no class, or a class is to be explained against itself.
    """
    count = outputs.shape[1]
    against = None if request.vs is None else class_number(request.vs, labels, count)
    numbers = [class_number(text, labels, count) for text in request.classes]
    if not numbers:
        ranked = outputs[0].argsort(descending=True).tolist()
        numbers = [number for number in ranked if number != against][:1]
    if against is not None and (against in numbers or not numbers):
        raise ValueError(f"Expected another class for --vs than the one explained, {class_named(against, labels)}.")
    return [of_class(number, labels, against) for number in dict.fromkeys(numbers)]


def of_concept(name: str, examples: Tensor, model: Any) -> Asked:
    """The concept that example images share."""
    with torch.no_grad():
        target = ConceptTarget.from_examples(model, examples, similarity="cosine", batch_size=8)
    facts = {"kind": "concept", "name": name, "examples": len(examples)}
    return Asked(f"concept-{slug(name)}", f"concept {name}", facts, target)


def of_text(text: str, against: str | None, model: Any, processor: Any) -> Asked:
    """How near an image is to a text, or to it and not to another."""
    target = TextTarget(model, processor, text, against)
    facts: Facts = {"kind": "text", "name": text} | ({} if against is None else {"against_name": against})
    title = f'"{text}"' if against is None else f'"{text}", not "{against}"'
    return Asked(f"text-{slug(text)[:40]}", title, facts, target)


def explains_tokens(make: Any) -> bool:
    """Whether a method explains the tokens of a transformer, of texts too: those of captum_ext."""
    return hasattr(make, "attribute_targets") or (isinstance(make, type) and issubclass(make, AttentionAttribution))


@contextmanager
def notes_on_maps() -> Iterator[list[str]]:
    """What methods say of the maps that they make meanwhile; other warnings go their way."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PartialMapWarning)
        yield notes
    for one in caught:
        if issubclass(one.category, PartialMapWarning):
            notes += [str(one.message)] * (str(one.message) not in notes)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def maps_of_tokens(explainer: Any, inputs: Tensor, asked: Sequence[Asked]) -> Tensor:
    """(targets, h, w), or of texts (targets, tokens), on the processor; from one pass where the method can.

    Raises:
        ValueError: if a method explains classes only, or the maps are neither.
    """
    if hasattr(explainer, "attribute_targets"):
        maps: Tensor = explainer.attribute_targets(inputs, [one.target for one in asked])[0]
    else:
        unfit = [one.title for one in asked if one.plain is None]
        if unfit:
            raise ValueError(f"{type(explainer).__name__} explains classes, not {unfit[0]}: use --method cdam.")
        maps = torch.cat([explainer.attribute(inputs, one.plain) for one in asked])
        maps = maps.squeeze(1) if inputs.dim() > 2 else maps
    if maps.dim() != (3 if inputs.dim() > 2 else 2):
        raise ValueError(f"Expected maps (targets, height, width) or (targets, tokens), got {tuple(maps.shape)}.")
    return maps.detach().float().cpu()
