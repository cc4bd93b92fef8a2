"""Answers of language models as targets: which token ids are meant, and how the model's rows of logits score them."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adapters.prompts import AnsweredPrompts

AnswerScore = Literal["logit", "log_prob"]
Answer = int | str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] | Tensor


def answer_ids(
    answer: Any, batch: int, tokenizer: Any, vocabulary: int | None, name: str = "answer"
) -> list[list[int]]:
    """The token ids of each sample's answer.

    Args:
        answer: A token id, a string or a list of ids, for all samples; a list of strings or of lists with one for each.
        batch: The number of samples.
        tokenizer: For strings: a tokenizer, or a processor that has one.
        vocabulary: How many token ids there are, if that is known.
        name: What the argument is called, for messages.

    Raises:
        TypeError: if it is none of these, or a string without a tokenizer.
        ValueError: if an answer is empty, is not in the vocabulary, or there is not one for each sample.
    """
    listed = answer.tolist() if isinstance(answer, Tensor | np.ndarray) else answer
    if isinstance(listed, Integral) and not isinstance(listed, bool):
        listed = [int(listed)]
    several = not isinstance(listed, str) and isinstance(listed, Sequence) and not all(map(_is_id, listed))
    if several and len(listed) != batch:
        raise ValueError(f"Expected one `{name}` for all prompts, or {batch}, one for each, got {len(listed)}.")
    if several and any(map(_is_id, listed)):
        raise TypeError(f"Expected `{name}` to hold token ids alone, or one answer for each prompt, got {listed!r}.")
    found = [_ids(one, tokenizer, name) for one in (listed if several else [listed])]
    for ids in found:
        if any(i < 0 or (vocabulary is not None and i >= vocabulary) for i in ids):
            last = "" if vocabulary is None else f" to {vocabulary - 1}"
            raise ValueError(f"Expected token ids from 0{last} in `{name}`, got {ids}.")
    return found if several else found * batch


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _ids(answer: Any, tokenizer: Any, name: str) -> list[int]:
    if isinstance(answer, str):
        found = _tokenized(answer, tokenizer, name)
    elif isinstance(answer, Sequence) and all(map(_is_id, answer)):
        found = [int(i) for i in answer]
    else:
        raise TypeError(
            f"Expected `{name}` to be a string, a token id or a list of token ids, or a list with one of these for "
            f"each prompt, got {answer!r}."
        )
    if not found:
        raise ValueError(f"Expected at least one token in `{name}`, got {answer!r}.")
    return found


def _tokenized(answer: str, tokenizer: Any, name: str) -> list[int]:
    tokenizer = text_tokenizer(tokenizer)
    if tokenizer is None:
        raise TypeError(
            f"Expected `tokenizer` for the string {answer!r} in `{name}`: the model's tokenizer or processor."
        )
    found: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in found:
        pieces = tokenizer.convert_ids_to_tokens(found)
        raise ValueError(f"{answer!r} in `{name}` is not in the tokenizer's vocabulary: it is read as {pieces}.")
    return found


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, or a processor's; None if there is none.

    Raises:
        TypeError: if it is neither.
    """
    found = getattr(tokenizer, "tokenizer", tokenizer)
    if found is not None and not (callable(found) and hasattr(found, "convert_ids_to_tokens")):
        raise TypeError(f"Expected `tokenizer` to be a tokenizer or processor of transformers, got {type(tokenizer)}.")
    return found


def words_of(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token; its number without a tokenizer."""
    return [str(i) for i in ids] if tokenizer is None else [tokenizer.decode([i]) for i in ids]


def targets_of(prompts: AnsweredPrompts, score: AnswerScore) -> list[list[Any]]:
    """For each of the answers' tokens one target a sample, of the rows of logits.

    Behind the end of a shorter answer its last token is explained once more; the caller leaves it out.
    """
    last = [len(answer) - 1 for answer in prompts.answers]
    return [
        [
            place(prompts.row(sample, min(number, end)), prompts.answers[sample][min(number, end)], score)
            for sample, end in enumerate(last)
        ]
        for number in range(prompts.number)
    ]


def place(row: int, token: int, score: AnswerScore) -> Any:
    """A token's logit in a row, or its logarithmic probability there, as a target."""
    return (row, token) if score == "logit" else lambda logits: torch.log_softmax(logits[row], -1)[token]


def lengths_mask(answers: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(batch, answer tokens), True where an answer has a token."""
    lengths = torch.tensor([len(answer) for answer in answers], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths[:, None]
