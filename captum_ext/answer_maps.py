"""What attributing an answer returns: maps of a prompt's tokens, and of its images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.prompts import ImageTokens

ImageMaps = list[Tensor | list[Tensor | None]]


@dataclass(frozen=True, eq=False)
class AnswerMaps:
    """How much each token of a prompt, and each place of its images, speaks for an answer.

    Attributes:
        scores: (batch, tokens of the prompt), the sum over the answer's tokens; 0 for padding and for what is excluded.
        per_token: (batch, answer tokens, tokens of the prompt); 0 behind the end of a shorter answer. None for two
            answers of different lengths, of which only the sums can be compared.
        images: For each image of a prompt the map (batch, h, w) of `scores` on the image's own grid of tokens; a list
            with a map for each sample where their grids differ, None for a sample with fewer images.
        images_per_token: The same of `per_token`, (batch, answer tokens, h, w); empty where that is None.
        tokens: The text of each sample's prompt, token by token; their numbers without a tokenizer.
        answer_tokens: The same of its answer: how the tokenizer divided it.
        answer_ids: The token ids of each sample's answer.
        first_share: (batch,), which part of the sum of |scores| lies on the first real token, before anything is
            excluded: attention sinks there, whatever is asked.
        special_share: (batch,), which part lies on special tokens (beginning, ends of turns), images not counted.
        excluded: (batch, tokens of the prompt), True where `exclude` set scores to 0.
        way: How the maps were computed, as `path` of the method calls it.
    """

    scores: Tensor
    per_token: Tensor | None
    images: ImageMaps
    images_per_token: ImageMaps
    tokens: list[list[str]]
    answer_tokens: list[list[str]]
    answer_ids: list[list[int]]
    first_share: Tensor
    special_share: Tensor
    excluded: Tensor
    way: str

    def __repr__(self) -> str:
        answers = ", ".join("".join(words) for words in self.answer_tokens)
        return f"AnswerMaps({answers!r}, scores={tuple(self.scores.shape)}, images={len(self.images)})"


def image_maps(scores: Tensor, images: Sequence[Sequence[ImageTokens]]) -> ImageMaps:
    """Maps of scores (batch, ..., tokens) on each image of a prompt, by what knows where its tokens lie."""
    found: ImageMaps = []
    for number in range(max(map(len, images), default=0)):
        maps = [own[number].map_of(one) if number < len(own) else None for one, own in zip(scores, images, strict=True)]
        real = [one for one in maps if one is not None]
        same = len(real) == len(maps) and len({one.shape for one in real}) == 1
        found.append(torch.stack(real) if same else maps)
    return found
