"""What attributing an answer returns: maps of a prompt's tokens, and of its images."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        first_share: (batch,), which part of the sum of `|scores|` lies on the first real token, before anything is
            excluded: attention sinks there, whatever is asked.
        special_share: (batch,), which part lies on special tokens (beginning, ends of turns), images not counted.
        excluded: (batch, tokens of the prompt), True where `exclude` set scores to 0.
        way: "further passes" of the model, or "the passes of generation" alone.
        real: (batch, tokens of the prompt), False for padding; None: nothing is padding.
        special: (batch, tokens of the prompt), True at special tokens that stand for no image; None: there are none.
        image_numbers: For each sample and each of its images which tokens of the prompt its map is made of, counted
            from 0; not those that end a row of places.
        against_tokens: The tokens of each sample's other answer; empty if there is none.
        score: What is explained of each token of the answer: "logit" or "log_prob".
        method: The name of the class that computed the maps.
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
    real: Tensor | None = None
    special: Tensor | None = None
    image_numbers: list[list[list[int]]] = field(default_factory=list)
    against_tokens: list[list[str]] = field(default_factory=list)
    score: str = "logit"
    method: str = ""

    def html(self, images: Sequence[Any] = (), path: str | Path | None = None, sample: int = 0) -> str:
        """A page on which each token of the answer highlights the words and image regions that are evidence for it.

        Red is evidence for the token, blue against it; zero is transparent. The whole page has one colour scale, which
        ends at the largest absolute score outside the first and special tokens of the prompt (these often hold most of
        the relevance); words beyond it are framed. The page needs no network and no other file.

        Args:
            images: The images of the sample's prompt in their order, as the model saw them, that is after any
                cropping: of PIL, or tensors (channels, height, width) in [0, 1]. Without them maps have no background.
            path: Where to write the page, too.
            sample: Which sample of the batch.

        Returns:
            The HTML.

        Raises:
            TypeError: if an image is of another type.
            ValueError: if there is no such sample, its scores are not finite, or it has another number of images.

        Example:
            >>> import torch
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> from captum_ext import CDAM
            >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
            >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes)).eval()
            >>> maps = CDAM(model).attribute_answer({"input_ids": torch.tensor([[1, 7, 4, 9]])}, answer=[5, 6])
            >>> maps.html().count('<span class="word')
            4
        """
        from ._answer_page import answer_page  # with its libraries, when it is asked for

        page = answer_page(self, images, sample)
        if path is not None:
            Path(path).write_text(page, "utf-8")
        return page

    def _repr_html_(self) -> str:
        """The page of the first sample, in a notebook."""
        page = html.escape(self.html())
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width:100%;height:36rem;border:0"></iframe>'

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
