"""Explaining the tokens that a language model answers with: what the methods share."""

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from captum.attr._utils.attribution import LayerAttribution
from torch import Tensor, nn

from adapters.models import uncompiled
from adapters.prompts import (
    AnsweredPrompts,
    Generated,
    agrees,
    answered_prompts,
    generated,
    image_token_id,
    image_tokens,
    logits_of_answers,
    special_ids,
    tail,
    token_ids,
    vocabulary_size,
)

from ._answers import AnswerScore, answer_ids, lengths_mask, targets_of, text_tokenizer, words_of
from .answer_maps import AnswerMaps, image_maps

Excluded = Literal["first", "special"]
_OF_ATTRIBUTE = {  # what answers decide themselves
    *("inputs", "target", "additional_forward_args", "return_tokens", "attribute_to_layer_input"),
    *("return_convergence_delta", "return_errors"),
}


class AnswerAttribution:
    """What a method can do with a language model: explain given answers, and what it generates."""

    forward_func: Callable[..., Any]
    attention: Any = None
    attribute: Callable[..., Any]

    def attribute_answer(
        self,
        inputs: Mapping[str, Any],
        answer: Any,
        against: Any = None,
        tokenizer: Any = None,
        *,
        score: AnswerScore = "logit",
        exclude: Collection[Excluded] = (),
        images: bool = True,
        **options: Any,
    ) -> AnswerMaps:
        """Explain an answer of a language model: which words and image places of the prompt speak for it.

        The score of token `j` of the answer is its logit, in the row that predicts it, after the prompt and the tokens
        before; that of the answer is their sum. Of a decoder the explained tokens are what its last attention reads;
        of an encoder-decoder what the decoder's last cross attention reads, the encoder's words.

        Args:
            inputs: What a tokenizer or processor of transformers returns with `return_tensors="pt"`: `input_ids`
                (batch, tokens), `attention_mask`, `pixel_values` and so on, padded on the left or on the right.
            answer: A string (with `tokenizer`), a token id or a list of ids, which follows each prompt; or a list of
                strings, or of lists of ids, one for each prompt.
            against: Another answer: the map is why the one, and not the other, the difference of both maps.
            tokenizer: The model's tokenizer or processor, for strings and for the texts of tokens.
            score: "logit", or "log_prob": the logarithm of the probability, which weighs what else could be said.
            exclude: "first", the first real token, or "special", special tokens that are no images: their scores are
                set to 0 in the maps, and `.excluded` says where.
            images: Lay the scores of image tokens on the images' grids; False for models of which these are not known.
            **options: Further arguments of the method's `attribute`, such as `n_steps`.

        Returns:
            `.scores` (batch, tokens of the prompt), `.per_token` (batch, answer tokens, tokens of the prompt),
            `.images` and more, see AnswerMaps. In the unit of the score, in float32 or wider.

        Raises:
            TypeError: if `inputs` is no mapping with `input_ids`, an answer is of the wrong kind, or the model is no
                module that returns `logits`.
            ValueError: if an answer is empty or not in the vocabulary, if the tokens of the prompt are not what the
                last attention reads, or if it cannot be told where image tokens lie.

        Example:
            >>> import torch
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> from captum_ext import CDAM
            >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
            >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes)).eval()
            >>> inputs = {"input_ids": torch.tensor([[1, 7, 4, 9]])}
            >>> maps = CDAM(model).attribute_answer(inputs, answer=[5, 6], against=3)
            >>> maps.scores.shape
            torch.Size([1, 4])
        """
        self._check_options(options)
        asked = Asked(language_model(self.forward_func), inputs, text_tokenizer(tokenizer), score, images=images)
        found = self._answered(asked, answer, "answer", options)
        scores = found.per_token.sum(1)
        per_token: Tensor | None = found.per_token
        others: list[list[int]] = []
        if against is not None:
            other = self._answered(asked, against, "against", options)
            scores = scores - other.per_token.sum(1)
            others = other.answers
            same = list(map(len, found.answers)) == list(map(len, others))
            per_token = found.per_token - other.per_token if same else None
        made = _maps(asked, found, scores, per_token, exclude)
        words = [words_of(ids, asked.tokenizer) for ids in others]
        return replace(made, against_tokens=words, method=type(self).__name__)

    def explain_generation(
        self,
        inputs: Mapping[str, Any],
        max_new_tokens: int = 20,
        tokenizer: Any = None,
        *,
        generation: Mapping[str, Any] | None = None,
        score: AnswerScore = "logit",
        exclude: Collection[Excluded] = (),
        images: bool = True,
        **options: Any,
    ) -> AnswerMaps:
        """Generate an answer, and explain each of its tokens from the passes that generation makes anyway.

        What enters the layer of the last attention is kept while `model.generate` runs; afterwards that layer alone
        runs once more, for all tokens together. Its logits must be those of the generation; where they are not, as
        with a method that reads all layers, the answer is explained as by `attribute_answer`, with further passes, and
        `.way` says so.

        Args:
            inputs: As for `attribute_answer`.
            max_new_tokens: How many tokens to generate at most.
            tokenizer: The model's tokenizer or processor, for the texts of tokens.
            generation: Further arguments of `model.generate`, such as `{"do_sample": True}`; no beams.
            score: As for `attribute_answer`.
            exclude: As for `attribute_answer`.
            images: As for `attribute_answer`.
            **options: Further arguments of the method's `attribute`, such as `n_steps`.

        Returns:
            As `attribute_answer` of what was generated, `.answer_ids`, up to the end of the turn.

        Raises:
            TypeError: if `inputs` is no mapping with `input_ids`, or the model cannot generate.
            ValueError: if beams are asked for.

        Example:
            >>> import torch
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> from captum_ext import CDAM
            >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
            >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=30, eos_token_id=None, **sizes)).eval()
            >>> maps = CDAM(model).explain_generation({"input_ids": torch.tensor([[1, 7, 4, 9]])}, max_new_tokens=3)
            >>> maps.per_token.shape
            torch.Size([1, 3, 4])
        """
        self._check_options(options)
        asked = Asked(language_model(self.forward_func), inputs, text_tokenizer(tokenizer), score, images=images)
        reads_last = (
            isinstance(self, LayerAttribution) and self.layer is None and getattr(self, "attention", None) is None
        )
        made = generated(asked.model, inputs, max_new_tokens, generation or {}, keep=reads_last)
        found = None if made.hidden is None else self._from_passes(asked, made, made.hidden, options)
        found = found or self._answered(asked, made.answers, "answer", options)
        made_maps = _maps(asked, found, found.per_token.sum(1), found.per_token, exclude)
        return replace(made_maps, method=type(self).__name__)

    def _from_passes(
        self, asked: "Asked", made: Generated, hidden: Tensor, options: Mapping[str, Any]
    ) -> "_Found | None":
        """From what entered the last layer; None where what follows does not give the logits of the generation."""
        prompts, logits, seen = tail(asked.model, asked.inputs, made)
        try:
            rows = self._of_rows(logits, hidden, prompts, asked.score, options)
        except Exception:  # of any kind: the layers were run in another way than the model's code expects
            return None
        if not agrees(made, seen[0]):
            return None
        return _Found(made.answers, prompts.of_prompt(rows), "the passes of generation")

    def _check_options(self, options: Mapping[str, Any]) -> None:
        known = inspect.signature(self.attribute).parameters.keys() - _OF_ATTRIBUTE
        for name in options:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__} takes no `{name}` for answers"
                    + (f", only {sorted(known)}." if known else ".")
                )

    def _answered(self, asked: "Asked", answer: Any, name: str, options: Mapping[str, Any]) -> "_Found":
        answers = answer_ids(answer, asked.batch, asked.tokenizer, asked.vocabulary, name)
        return _Found(answers, self._of_answers(asked, answers, options), "further passes")

    def _of_answers(self, asked: "Asked", answers: list[list[int]], options: Mapping[str, Any]) -> Tensor:
        """The scores (batch, answer tokens, tokens of the prompt), from one pass."""
        prompts = answered_prompts(asked.model, asked.inputs, answers)
        logits = logits_of_answers(asked.model, prompts)
        return prompts.of_prompt(self._of_rows(logits, prompts.ids, prompts, asked.score, options))

    def _of_rows(
        self,
        logits: Callable[[Tensor], Tensor],
        given: Tensor,
        prompts: AnsweredPrompts,
        score: AnswerScore,
        options: Mapping[str, Any],
    ) -> Tensor:
        """The scores (batch, answer tokens, tokens read) by a function that returns rows of logits."""
        explainer: Any = copy.copy(self)
        explainer.forward_func, explainer.output = logits, None
        found: Tensor = explainer.attribute_targets(given, targets_of(prompts, score), return_tokens=True, **options)
        return found


class Asked:
    """A question that was checked.

    Args:
        model: The model that answers.
        inputs: The prompts.
        tokenizer: The tokenizer, or None.
        score: "logit" or "log_prob".
        images: Are maps of images wanted?

    Raises:
        TypeError: if `inputs` has no `input_ids`.
        ValueError: if `score` is another, or it is not known where image tokens lie.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Any], tokenizer: Any, score: AnswerScore, *, images: bool
    ) -> None:
        if score not in get_args(AnswerScore):
            raise ValueError(f"Expected `score` to be one of {get_args(AnswerScore)}, got {score!r}.")
        self.model, self.inputs, self.tokenizer, self.score = model, inputs, tokenizer, score
        self.ids: Tensor = token_ids(inputs)
        self.batch = len(self.ids)
        self.real: Tensor = inputs.get("attention_mask", torch.ones_like(self.ids)).bool()
        self.vocabulary = vocabulary_size(model)
        self.images = image_tokens(model, inputs) if images else [[] for _ in self.ids]


class _Found:
    """The scores (batch, answer tokens, tokens of the prompt) of answers, and how they were found."""

    def __init__(self, answers: list[list[int]], per_token: Tensor, way: str) -> None:
        self.answers, self.way = answers, way
        mask = lengths_mask(answers, per_token.device)
        self.per_token = per_token[:, : mask.shape[1]] * mask[..., None]


def language_model(forward: Callable[..., Any]) -> nn.Module:
    """The model that answers.

    Raises:
        TypeError: if it is none.
    """
    model = uncompiled(forward)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            "Expected a language model of transformers, as AutoModelForCausalLM or AutoModelForImageTextToText make "
            f"it, got {type(model).__name__}. Make the explainer of the model itself."
        )
    return model


def _maps(
    asked: Asked, found: _Found, scores: Tensor, per_token: Tensor | None, exclude: Collection[Excluded]
) -> AnswerMaps:
    """The result, with what is excluded set to 0."""
    if isinstance(exclude, str) or not set(exclude) <= set(get_args(Excluded)):
        raise ValueError(f"Expected `exclude` to be a list of some of {get_args(Excluded)}, got {exclude!r}.")
    images = asked.images
    masks = {"first": _first(asked.real), "special": _special(asked)}
    total = scores.abs().sum(-1)
    shares = {
        name: (scores.abs() * mask.to(scores.device)).sum(-1) / torch.where(total > 0, total, 1)
        for name, mask in masks.items()
    }
    excluded = torch.zeros_like(asked.real)
    for name in exclude:
        excluded |= masks[name]
    hidden = excluded.to(scores.device)
    scores = scores.masked_fill(hidden, 0)
    per_token = None if per_token is None else per_token.masked_fill(hidden[:, None], 0)
    real = zip(asked.ids.tolist(), asked.real.tolist(), strict=True)
    return AnswerMaps(
        scores,
        per_token,
        image_maps(scores, images),
        [] if per_token is None else image_maps(per_token, images),
        [words_of(ids, asked.tokenizer) for ids, _ in real],
        [words_of(ids, asked.tokenizer) for ids in found.answers],
        found.answers,
        shares["first"],
        shares["special"],
        excluded,
        found.way,
        real=asked.real,
        special=masks["special"],
        image_numbers=[
            [sorted({int(i) for part in one.parts for i in part.positions.flatten()}) for one in own] for own in images
        ],
        score=asked.score,
    )


def _first(real: Tensor) -> Tensor:
    """(batch, tokens), True at the first token that is no padding."""
    return real & (real.cumsum(-1) == 1)


def _special(asked: Asked) -> Tensor:
    """(batch, tokens), True at special tokens that stand for no image."""
    known = special_ids(asked.model) | set(getattr(asked.tokenizer, "all_special_ids", ()))
    special = torch.tensor(sorted(known - {image_token_id(asked.model)}), dtype=torch.long, device=asked.ids.device)
    return torch.isin(asked.ids, special) & asked.real
