"""Questions, explained by every method and measured by every metric; failures are isolated per cell."""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from adapters.models import unchanged
from adapters.prompts import image_tokens, token_ids

from .._display import shown_map, small_map
from .._evaluation import Batch, Step
from .._isolation import free_memory, said
from .._methods import Method, Noise
from .._seeding import seeded_for
from .data import AskedSample
from .measures import Curve, Measure, Relevance
from .prompt import Prompt, prompt_of

TARGET = -1  # in the tables: no class
_PICTURE = 448  # the longest side in the report


@dataclass(frozen=True)
class QuestionEvaluation:
    """How questions are evaluated.

    Attributes:
        model: In evaluation mode, on its device.
        processor: Its processor or tokenizer.
        methods: By name.
        metrics: By name.
        options: Of the methods.
        seed: The seed of all random numbers.
        gallery: Samples with an index below it are kept for the report.
    """

    model: nn.Module
    processor: Any
    methods: Mapping[str, Method]
    metrics: Mapping[str, Measure]
    options: Mapping[str, Mapping[str, Any]]
    seed: int
    gallery: int

    def __call__(self, samples: Sequence[AskedSample], cells: Mapping[str, Sequence[str]]) -> Iterator[Step]:
        """Work on some samples, by method the metrics that are wanted."""
        batch, done = Batch(), dict[str, list[str]]()
        asked: list[tuple[Prompt, dict[str, Any] | None]] = []
        for sample in samples:
            try:
                prompt = prompt_of(self.model, self.processor, sample)
            except Exception as error:
                batch.skipped.append((sample.index, sample.name, said(error)))
                continue
            image = sample.picture if sample.index < self.gallery else None
            asked.append((prompt, None if image is None else _picture(sample, small_picture(image))))
        batch.pictures = [picture for _, picture in asked if picture is not None]
        for name, wanted in cells.items() if asked else ():
            yield Step(name, batch, done)
            for prompt, picture in asked:
                self._of_method(batch, prompt, name, wanted, picture)
            done[name] = list(wanted)
        yield Step("", batch, done)

    def relevance(self, name: str, prompt: Prompt) -> Relevance:
        """What a method says of a prompt."""
        sample = prompt.sample
        image = sample.picture is not None and any(metric.reads_image for metric in self.metrics.values())
        with seeded_for(self.seed, "explanation", sample.index), unchanged(self.model):
            if self.methods[name].make is Noise:
                return _noise(prompt, image=image)
            explainer, options = _made(self.methods[name], self.model, self.options.get(name, {}))
            maps = explainer.attribute_answer(
                prompt.inputs, prompt.answer, sample.against, self.processor, images=image, **options
            )
        if not bool(torch.isfinite(maps.scores).all()):
            raise ValueError("the map holds NaN or infinity")
        return Relevance(maps.scores[0].detach().cpu(), maps.images[0][0].detach().cpu() if maps.images else None)

    def _of_method(
        self, batch: Batch, prompt: Prompt, name: str, wanted: Sequence[str], picture: dict[str, Any] | None
    ) -> None:
        sample, found, wrong = prompt.sample, None, None
        start = time.perf_counter()
        try:
            found = self.relevance(name, prompt)
        except Exception as error:
            wrong = said(error).replace("`images=False`", f"only the metrics {', '.join(self._of_words())}")
            free_memory()
        seconds = time.perf_counter() - start
        batch.explanations.append((sample.index, sample.name, TARGET, name, wrong, seconds))
        if found is not None:
            shown = found.tokens if found.image is None else found.image
            heat = small_map(shown.float().numpy()[None])
            batch.small_maps.append((sample.index, name, list(heat.shape), heat.ravel()))
            if picture is not None and found.image is not None:
                picture["maps"][name, TARGET] = shown_map(found.image.float().numpy())
        for metric in wanted:
            self._score(batch, prompt, name, metric, found, wrong)

    def _score(
        self, batch: Batch, prompt: Prompt, name: str, metric: str, found: Relevance | None, wrong: str | None
    ) -> None:
        measure, score, error = self.metrics[metric], float("nan"), wrong
        curves: list[Curve] = []
        start = time.perf_counter()
        if found is not None:
            try:
                score, curves = measure.score(prompt, found, measure.steps)
            except Exception as problem:
                error = said(problem)
                free_memory()
        seconds = time.perf_counter() - start
        index = prompt.sample.index
        batch.scores.append((index, TARGET, name, metric, score, error, seconds))
        batch.curves += [(index, name, metric, *curve) for curve in curves]

    def _of_words(self) -> list[str]:
        return [name for name, metric in self.metrics.items() if not metric.reads_image] or ["word-deletion"]


def _made(method: Method, model: nn.Module, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A method's object, and what its `attribute_answer` is given."""
    given = dict(method.options) | dict(options)
    own = inspect.signature(method.make).parameters
    made = method.make(model, **{name: value for name, value in given.items() if name in own})
    if not hasattr(made, "attribute_answer"):
        raise TypeError(f"{type(made).__name__} has no `attribute_answer`: it explains no answers to questions")
    return made, {name: value for name, value in given.items() if name not in own}


def _noise(prompt: Prompt, *, image: bool) -> Relevance:
    """Random scores, as a control."""
    tokens = torch.randn(token_ids(prompt.inputs).shape[1])
    images = image_tokens(prompt.model, prompt.inputs)[0] if image else []
    return Relevance(tokens, images[0].map_of(tokens) if images else None)


def small_picture(picture: Image.Image) -> Tensor:
    """An image for the report, (3, height, width) from 0 to 1."""
    small = picture.copy()
    small.thumbnail((_PICTURE, _PICTURE))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def _picture(sample: AskedSample, pixels: Tensor) -> dict[str, Any]:
    return {
        "index": sample.index,
        "name": sample.name,
        "image": pixels.numpy(),
        "classes": [TARGET],
        "asked": sample.asked,
        "maps": {},
    }
