"""A question as a model reads it, and the same with words or parts of the image taken away."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from adapters.prompts import answered_prompts, beginning_id, image_token_id, logits_of_answers, special_ids, token_ids
from captum_ext._answers import answer_ids, text_tokenizer

from .data import AskedSample
from .language_model import asked

Place = tuple[int, int]  # row and column in an image's map
_STARTS = ("Ġ", "▁", " ")  # how tokenizers mark the first token of a word
_CONTINUES = "##"
_OTHERS = ("?", "0 1")  # questions, to see what is around one


@dataclass
class Prompt:
    """A question to a model with the answer that is explained.

    Attributes:
        model: The model.
        processor: Its processor or tokenizer.
        sample: The question.
        inputs: What the model reads of it.
        answer: The token ids of the answer.
        words: Of each word of the question the places of its tokens.
    """

    model: nn.Module
    processor: Any
    sample: AskedSample
    inputs: dict[str, Any]
    answer: list[int]
    words: list[list[int]]
    _known: dict[Any, float] = field(default_factory=dict)

    def without_words(self, words: Collection[int]) -> float:
        """The probability of the answer without the tokens of these words."""
        key = ("words", frozenset(words))
        if key not in self._known:
            gone = {place for word in words for place in self.words[word]}
            self._known[key] = probability(self.model, without_tokens(self.model, self.inputs, gone), self.answer)
        return self._known[key]

    def without_places(self, places: Collection[Place], grid: tuple[int, int]) -> float:
        """The probability of the answer where places of the image, of a grid (rows, columns), have its mean colour."""
        key = ("places", frozenset(places), grid)
        if key not in self._known:
            self._known[key] = probability(self.model, self._painted(places, grid), self.answer)
        return self._known[key]

    def _painted(self, places: Collection[Place], grid: tuple[int, int]) -> dict[str, Any]:
        if not places:
            return self.inputs
        pixels = self.inputs.get("pixel_values")
        if isinstance(pixels, Tensor) and pixels.dim() == 4 and len(pixels) == 1:  # the image, as the model sees it
            return {**self.inputs, "pixel_values": painted(pixels, places, grid)}
        if self.sample.picture is None:
            raise ValueError("there is no image")
        picture = torch.from_numpy(np.array(self.sample.picture)).permute(2, 0, 1).float()
        image = painted(picture[None], places, grid)[0].round().byte().permute(1, 2, 0).numpy()
        inputs, _ = asked(self.model, self.processor, self.sample.question, Image.fromarray(image))
        return inputs


def prompt_of(model: nn.Module, processor: Any, sample: AskedSample) -> Prompt:
    """A question as a model reads it.

    Raises:
        ValueError: if the answer is not in the vocabulary.
    """
    inputs, _ = asked(model, processor, sample.question, sample.picture)
    (answer,) = answer_ids(sample.answer, 1, processor, None)
    return Prompt(model, processor, sample, inputs, answer, _words(model, processor, sample, inputs))


def probability(model: nn.Module, inputs: Mapping[str, Any], answer: list[int]) -> float:
    """The probability of an answer: the geometric mean of those of its tokens, each after the ones before."""
    prompts = answered_prompts(model, inputs, [answer])
    with torch.no_grad():
        rows = logits_of_answers(model, prompts)(prompts.ids)[0].float()
    chosen = rows.log_softmax(-1).gather(-1, torch.tensor(answer, device=rows.device)[:, None])
    return float(chosen.mean().exp())


def without_tokens(model: nn.Module, inputs: Mapping[str, Any], gone: Collection[int]) -> dict[str, Any]:
    """Inputs of one sample without some tokens; if none would be left, with the one that begins a text.

    Raises:
        ValueError: if none would be left, and the model has no token to begin with.
    """
    ids = token_ids(inputs)
    length = ids.shape[1]
    left = torch.tensor([place for place in range(length) if place not in gone], dtype=torch.long, device=ids.device)
    made = {
        name: value[:, left] if isinstance(value, Tensor) and value.shape[:2] == (1, length) else value
        for name, value in inputs.items()
    }
    if len(left) == 0:
        first = beginning_id(model)
        if first is None:
            raise ValueError("without its words the prompt is empty, and the model's config has no bos_token_id")
        made = {"input_ids": ids.new_tensor([[first]])}
    return made


def painted(image: Tensor, places: Collection[Place], grid: tuple[int, int]) -> Tensor:
    """An image (1, channels, height, width) with its mean colour in some places of a grid (rows, columns)."""
    mask = torch.zeros(grid, dtype=torch.bool)
    rows, columns = zip(*places, strict=True)
    mask[list(rows), list(columns)] = True
    for axis, (cells, side) in enumerate(zip(grid, image.shape[2:], strict=True)):
        of_pixel = ((torch.arange(side) + 0.5) * cells / side).long()
        mask = mask.index_select(axis, of_pixel)
    mean = image.float().mean((2, 3), keepdim=True).to(image.dtype)
    return torch.where(mask.to(image.device), mean, image)


def _words(model: nn.Module, processor: Any, sample: AskedSample, inputs: Mapping[str, Any]) -> list[list[int]]:
    """The tokens of each word of a question, without those of the template, and special ones."""
    ids: list[int] = token_ids(inputs)[0].tolist()
    shared = [_between(ids, around) for around in _templates(model, processor, sample)]
    first, end = min(one for one, _ in shared), len(ids) - min(one for _, one in shared)
    other = special_ids(model) | {image_token_id(model)}
    tokenizer = text_tokenizer(processor)
    words: list[list[int]] = []
    texts = tokenizer.convert_ids_to_tokens(ids[first:end])
    marked = any(text.startswith(_STARTS) for text in texts)
    joined = marked or any(text.startswith(_CONTINUES) for text in texts)
    for place, text in enumerate(texts, first):
        if ids[place] in other:
            continue
        starts = text.startswith(_STARTS) if marked else not text.startswith(_CONTINUES)
        follows = bool(words) and words[-1][-1] == place - 1
        if joined and follows and not starts:
            words[-1].append(place)
        else:
            words.append([place])
    return words


def _templates(model: nn.Module, processor: Any, sample: AskedSample) -> Iterator[list[int]]:
    """The tokens of the prompt around other questions, of which each begins and ends in another way."""
    for other in _OTHERS:
        inputs, _ = asked(model, processor, other, sample.picture)
        yield token_ids(inputs)[0].tolist()


def _between(ids: list[int], around: list[int]) -> tuple[int, int]:
    """How many tokens at the beginning, and how many at the end, two prompts share."""
    most = min(len(ids), len(around))
    first = next((n for n in range(most) if ids[n] != around[n]), most)
    last = next((n for n in range(most) if ids[-1 - n] != around[-1 - n]), most)
    return first, last
