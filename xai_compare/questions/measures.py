"""What is measured of maps of answers: how the answer's probability changes as parts of the prompt are taken away."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._names import select, slug
from .prompt import Prompt

Curve = tuple[str, str, list[float], list[float]]  # name, what the horizontal axis is, x, y
Unit = Literal["words", "patches"]


@dataclass(frozen=True)
class Relevance:
    """What a method says of a prompt.

    Attributes:
        tokens: (tokens,), the score of each.
        image: (rows, columns), the score of each place of the image; None without an image.
    """

    tokens: Tensor
    image: Tensor | None


@dataclass(frozen=True)
class Measure:
    """A number for a map of an answer.

    Attributes:
        title: What the report calls it.
        direction: "higher" or "lower": which is better.
        about: What it is, in half a line.
        score: Of a prompt, what a method says of it, and the number of steps.
        reads_image: Whether it needs an image.
        steps: In how many steps parts are taken away.
    """

    title: str
    direction: str
    about: str
    score: Callable[[Prompt, Relevance, int], tuple[float, list[Curve]]]
    reads_image: bool
    steps: int = 10
    ours: bool = True

    @property
    def source(self) -> Any:
        """Its name and arguments, compared when a run is resumed."""
        return {"name": self.title, "steps": self.steps}


def _by_words(prompt: Prompt, found: Relevance, steps: int, *, insertion: bool) -> tuple[float, list[Curve]]:
    if not prompt.words:
        raise ValueError("the question has no words")
    scores = torch.stack([found.tokens[word].sum() for word in prompt.words])
    return _curve(scores, steps, lambda gone: prompt.without_words(gone), "words", insertion=insertion)


def _by_places(prompt: Prompt, found: Relevance, steps: int, *, insertion: bool) -> tuple[float, list[Curve]]:
    if found.image is None:
        raise ValueError("the question has no image")
    rows, columns = (int(side) for side in found.image.shape)

    def without(gone: list[int]) -> float:
        return prompt.without_places([divmod(place, columns) for place in gone], (rows, columns))

    return _curve(found.image.flatten(), steps, without, "patches", insertion=insertion)


def _curve(
    scores: Tensor, steps: int, without: Callable[[list[int]], float], unit: Unit, *, insertion: bool
) -> tuple[float, list[Curve]]:
    """The mean of the probability over all shares of what is taken away, by the trapezoidal rule, and its curve."""
    if len(scores) > 1 and bool((scores == scores[0]).all()):
        raise ValueError(f"all {unit} have the same score, so that none comes first")
    order: list[int] = scores.float().argsort(descending=True, stable=True).tolist()
    shares = np.linspace(0, 1, steps + 1)
    counts = [round(share * len(order)) for share in shares]
    values = [without(order[count:] if insertion else order[:count]) for count in counts]
    name, axis = ("insertion", "there") if insertion else ("deletion", "taken away")
    mean = float(np.trapezoid(values, shares))
    return mean, [(name, f"share of {unit} {axis}, the most relevant first", shares.tolist(), values)]


def _in_box(prompt: Prompt, found: Relevance, _: int) -> tuple[float, list[Curve]]:
    """The share of positive relevance in the box of the sample."""
    box, picture = prompt.sample.box, prompt.sample.picture
    if box is None or picture is None or found.image is None:
        raise ValueError("it needs to know what the answer is about: a column box with left, top, right and bottom")
    cut = getattr(getattr(prompt.processor, "image_processor", None), "do_center_crop", False)
    if cut and picture.width != picture.height:
        raise ValueError(f"the processor cuts the edges of the image off, {picture.size}: give it a square one")
    heat = found.image.float().clamp(min=0).cpu()
    total = float(heat.sum())
    if total == 0:
        raise ValueError("no place has positive relevance")
    left, top, right, bottom = box
    rows = _covered(heat.shape[0], picture.height, top, bottom)
    columns = _covered(heat.shape[1], picture.width, left, right)
    return float(rows @ heat @ columns) / total, []


def _covered(cells: int, side: int, low: float, high: float) -> Tensor:
    """Which part of each of some equal cells lies between two places of a side."""
    edges = torch.linspace(0, side, cells + 1)
    part = (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0)
    return part * cells / side


MEASURES = {
    "word-deletion": Measure(
        "Word deletion",
        "lower",
        "probability of the answer as words of the question are taken away, the most relevant first",
        partial(_by_words, insertion=False),
        reads_image=False,
    ),
    "word-insertion": Measure(
        "Word insertion",
        "higher",
        "probability of the answer as words are added to a question without any",
        partial(_by_words, insertion=True),
        reads_image=False,
    ),
    "patch-deletion": Measure(
        "Patch deletion",
        "lower",
        "probability of the answer as places of the image get its mean colour",
        partial(_by_places, insertion=False),
        reads_image=True,
    ),
    "patch-insertion": Measure(
        "Patch insertion",
        "higher",
        "probability of the answer as places are added to an image of its mean colour",
        partial(_by_places, insertion=True),
        reads_image=True,
    ),
    "relevance-in-box": Measure(
        "Relevance in the box",
        "higher",
        "share of the positive relevance of the image that lies in the box of the row",
        _in_box,
        reads_image=True,
    ),
}


def measures_named(wanted: Any, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Measure]:
    """The requested measures, with the user's options.

    Raises:
        TypeError: if they are not names.
        ValueError: if a name or option is unknown, or `steps` is no whole number above 0.
    """
    if isinstance(wanted, Mapping):
        raise TypeError(f"Expected the names of metrics for questions, {', '.join(MEASURES)}; got a mapping.")
    names = [n for name in wanted for n in (MEASURES if slug(name) == "all" else [name])]
    try:
        found = select("metric", names, MEASURES)
    except ValueError as error:
        raise ValueError(f"{error} Of answers to questions: {', '.join(MEASURES)}.") from error
    return {name: _with_options(name, measure, options.get(name, {})) for name, measure in found.items()}


def _with_options(name: str, measure: Measure, options: Mapping[str, Any]) -> Measure:
    steps = options.get("steps", measure.steps)
    if set(options) - {"steps"}:
        raise ValueError(f"Metric {name!r} has one option, steps; got {', '.join(options)}.")
    if type(steps) is not int or steps < 1:
        raise ValueError(f"Expected steps of {name!r} to be a whole number of at least 1, got {steps!r}.")
    return replace(measure, steps=steps)
