"""Prompts followed by answers, as a language model reads them to predict each token of the answers."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONTINUED = {"attention_mask": 1, "mm_token_type_ids": 0}  # what an answer's tokens have there
_ROW_BY_ROW = ("cross_attention_mask",)  # of an answer's tokens as of the last token before
_UNREAD = ("labels", "rows", "cols")  # for training, and how a processor arranges tiles


@dataclass(frozen=True)
class AnsweredPrompts:
    """A batch of prompts, each followed by an answer, aligned so that all of them end at the same place.

    The model predicts the answer's token `j` of sample `b` at row `number - len(answers[b]) + j` of its last `number`
    rows of logits, and reads all but the last token of each answer.

    Attributes:
        ids: What the model reads, (batch, length) token ids: padding, prompt, answer without its last token. Of an
            encoder-decoder the encoder's words.
        named: Its further arguments.
        answers: The token ids of each sample's answer.
        places: (batch, tokens) where each token of the prompts, as they were given, is in what the model reads.
        real: (batch, tokens) which of these are no padding.
    """

    ids: Tensor
    named: dict[str, Any]
    answers: list[list[int]]
    places: Tensor
    real: Tensor

    @property
    def number(self) -> int:
        """Of how many last rows the logits are read."""
        return max(map(len, self.answers))

    def row(self, sample: int, token: int) -> int:
        """In which of the last rows of logits a token of a sample's answer is predicted."""
        return self.number - len(self.answers[sample]) + token

    def of_prompt(self, scores: Tensor) -> Tensor:
        """Scores (batch, ..., tokens read) of the prompts' tokens as they were given; 0 for padding.

        Raises:
            ValueError: if what was scored are not the tokens that the model was given.
        """
        if scores.shape[-1] != self.ids.shape[1]:
            raise ValueError(
                f"The last attention reads {scores.shape[-1]} tokens, not the {self.ids.shape[1]} token ids of the "
                "prompt and its answer: which of them are the prompt's is not known. Explain the model's logits by "
                "`attribute` with `return_tokens=True`, or choose another attention by `attention=`."
            )
        shape = (len(scores), *[1] * (scores.dim() - 2), -1)
        places = self.places.to(scores.device).clamp(min=0).view(shape).expand(*scores.shape[:-1], -1)
        return scores.gather(-1, places).masked_fill(~self.real.to(scores.device).view(shape), 0)


def answered_prompts(model: nn.Module, inputs: Mapping[str, Any], answers: Sequence[Sequence[int]]) -> AnsweredPrompts:
    """Prompts as a processor or tokenizer returns them, followed by answers.

    Args:
        model: A causal language model, an image-text-to-text model or an encoder-decoder, as of transformers.
        inputs: `input_ids` (batch, tokens), and what belongs to them, padded on the left or on the right.
        answers: The token ids of each sample's answer, at least one.

    Raises:
        TypeError: if `inputs` is no mapping with `input_ids`.
        ValueError: if an argument of `inputs` cannot be continued, or real tokens lie between padding.
    """
    ids = token_ids(inputs)
    given = {name: value for name, value in inputs.items() if value is not None and name not in _UNREAD}
    mask = _mask_of(given, ids)
    listed = [list(map(int, answer)) for answer in answers]
    if is_encoder_decoder(model):
        return _for_decoder(model, given, listed, mask.bool())
    rows, places = _aligned(mask.bool().cpu(), listed)
    rows = rows.to(ids.device)
    named = {
        name: _continued(model, name, value, ids, rows, listed) for name, value in given.items() if name != "input_ids"
    }
    made = _moved(ids, rows, padding_id(model))
    for sample, answer in enumerate(listed):
        if len(answer) > 1:
            made[sample, 1 - len(answer) :] = torch.tensor(answer[:-1], device=ids.device)
    if "attention_mask" in given or bool((rows < 0).any()):
        named["attention_mask"] = _continued(model, "attention_mask", mask, ids, rows, listed)
    _with_positions(model, named)
    return AnsweredPrompts(made, named, listed, places, mask.bool())


def _mask_of(given: Mapping[str, Any], ids: Tensor) -> Tensor:
    """Which tokens are no padding, (batch, tokens), 1 or 0."""
    for name in ("cache", "past_key_values"):
        if name in given:
            raise ValueError(f"Expected whole prompts, got `{name}`, which holds a part of them: leave it out.")
    mask: Tensor = given.get("attention_mask", torch.ones_like(ids))
    if mask.shape != ids.shape:
        raise ValueError(f"Expected `attention_mask` of shape {tuple(ids.shape)}, got {tuple(mask.shape)}.")
    if not bool(mask.bool().any(1).all()):
        raise ValueError("Expected at least one token in each prompt, got one that is empty or all padding.")
    return mask


def _aligned(real: Tensor, answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Which token of the prompt is read at each place, and at which place each token is read; -1 for none."""
    batch, size = real.shape
    rows = torch.full((batch, size + max(map(len, answers)) - 1), -1)
    places = torch.full((batch, size), -1)
    for sample, answer in enumerate(answers):
        tokens = real[sample].nonzero().flatten()
        if int(tokens[-1] - tokens[0]) >= len(tokens):
            raise ValueError(f"Expected padding on one side, but `attention_mask` of sample {sample} has gaps.")
        end = rows.shape[1] - (len(answer) - 1)
        rows[sample, end - len(tokens) : end] = tokens
        places[sample, tokens] = torch.arange(end - len(tokens), end)
    return rows, places


def _for_decoder(model: nn.Module, given: dict[str, Any], answers: list[list[int]], real: Tensor) -> AnsweredPrompts:
    """The encoder reads the prompt, the decoder a token that begins and the answer."""
    config: Any = model.config
    begin = getattr(config, "decoder_start_token_id", None)
    begin = (
        getattr(getattr(model, "generation_config", None), "decoder_start_token_id", None) if begin is None else begin
    )
    if begin is None:
        raise ValueError(f"{type(model).__name__}'s config has no `decoder_start_token_id`, with which answers begin.")
    if len({len(answer) for answer in answers}) > 1:
        raise ValueError(
            f"Expected answers of one length for an encoder-decoder, got {[len(a) for a in answers]} tokens."
        )
    read = torch.tensor([[begin, *answer[:-1]] for answer in answers], device=given["input_ids"].device)
    named = {name: value for name, value in given.items() if name != "input_ids"} | {"decoder_input_ids": read}
    places = torch.arange(real.shape[1]).expand(real.shape)
    return AnsweredPrompts(given["input_ids"], named, answers, places, real)


def token_ids(inputs: Mapping[str, Any]) -> Tensor:
    """The `input_ids` (batch, tokens).

    Raises:
        TypeError: if there are none.
    """
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise TypeError(
            "Expected `inputs` as a tokenizer or processor returns them with return_tensors='pt', with `input_ids` "
            f"(batch, tokens), got {_seen(inputs)}. Of a model whose prompt is an image or a sound alone, explain a "
            "logit: `CDAM(functools.partial(model, decoder_input_ids=ids)).attribute(pixels, (row, token))`."
        )
    return ids


def vocabulary_size(model: nn.Module) -> int | None:
    """How many token ids a model knows, if its config says so."""
    found = getattr(_text_config(model), "vocab_size", None)
    return found if isinstance(found, int) else None


def special_ids(model: nn.Module) -> set[int]:
    """The token ids that begin, end and pad texts, as the configs have them."""
    return set(_ids(model, "bos_token_id", "eos_token_id", "pad_token_id"))


def is_encoder_decoder(model: nn.Module) -> bool:
    """Does a decoder write the answer, and an encoder read the prompt?"""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def logits_of_answers(
    model: nn.Module, prompts: AnsweredPrompts, *, rows: int | None = None, call: Callable[..., Any] | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of token ids as `prompts.ids` that returns the last rows of logits, (batch, rows, words).

    Args:
        model: The model.
        prompts: What it reads.
        rows: How many; None: those of the answers.
        call: What runs in the model's place.
    """
    rows = prompts.number if rows is None else rows
    named = {name: value for name, value in prompts.named.items() if accepts(model, name)}
    if accepts(model, "use_cache"):
        named["use_cache"] = False
    if accepts(model, "logits_to_keep"):
        named["logits_to_keep"] = rows

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = (call or model)(input_ids=ids, **named).logits
        return found if found.shape[1] == rows else found[:, -rows:]

    return logits


def accepts(model: nn.Module, name: str) -> bool:
    """Has a model's forward a parameter of this name, or does it take any?"""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or (
        name != "logits_to_keep" and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    )


def padding_id(model: nn.Module) -> int:
    """A token id for places that nobody reads."""
    return next(_ids(model, "pad_token_id"), 0)


def beginning_id(model: nn.Module) -> int | None:
    """The token id that begins a text; of a model without one that which ends it, or None."""
    return next(_ids(model, "bos_token_id", "eos_token_id"), None)


def _ids(model: nn.Module, *names: str) -> Iterator[int]:
    """The token ids of these names, as the configs have them."""
    for name in names:
        for config in (getattr(model, "generation_config", None), _text_config(model)):
            value = getattr(config, name, None)
            yield from [value] if isinstance(value, int) else value or ()


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _continued(model: nn.Module, name: str, value: Any, ids: Tensor, rows: Tensor, answers: list[list[int]]) -> Any:
    """An argument for what the model reads, if it has a value for each token of the prompt."""
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[:2] != ids.shape:
        return value
    if name in _CONTINUED or name == "token_type_ids":
        made = _moved(value, rows, 0)
        for sample, answer in enumerate(answers):
            if len(answer) > 1:
                before = made[sample : sample + 1, : 1 - len(answer)]
                made[sample, 1 - len(answer) :] = _CONTINUED[name] if name in _CONTINUED else _next_type(model, before)
        return made
    if name in _ROW_BY_ROW:
        last = rows.max(1, keepdim=True).values
        kept = torch.where(
            (rows < 0) & (torch.arange(rows.shape[1], device=rows.device) > rows.argmax(1)[:, None]), last, rows
        )
        return _moved(value, kept, 0)
    raise ValueError(
        f"`{name}`, of shape {tuple(value.shape)}, has a value for each token of the prompt, and it is not known which "
        "values an answer's tokens have. Leave it out, if the model makes it itself."
    )


def _next_type(model: nn.Module, types: Tensor) -> int:
    """The type of an answer's tokens: as the model's own generation has it, or else the last of the prompt (1, tokens).

    PaliGemma lets tokens of one type read each other in both directions, and its answers have another.
    """
    update = getattr(model, "_update_model_kwargs_for_generation", None)
    named = {"token_type_ids": types}
    if callable(update):
        named = update({}, named, is_encoder_decoder=False, num_new_tokens=1)
    return int(named["token_type_ids"][0, -1])


def _moved(value: Tensor, rows: Tensor, filling: int) -> Tensor:
    """What the model reads of a tensor (batch, tokens, ...), by the number of the prompt's token."""
    shape = (*rows.shape, *[1] * (value.dim() - 2))
    index = rows.clamp(min=0).view(shape).expand(*rows.shape, *value.shape[2:])
    return value.gather(1, index).masked_fill((rows < 0).view(shape), filling)


def _with_positions(model: nn.Module, named: dict[str, Any]) -> None:
    """Positions that do not count padding, as generation has them, where the model does not find them itself."""
    mask = named.get("attention_mask")
    inner = getattr(model, "model", None)
    if mask is None or bool(mask.all()) or not accepts(model, "position_ids") or hasattr(inner, "get_rope_index"):
        return
    named.setdefault("position_ids", (mask.long().cumsum(-1) - 1).clamp(min=0))


def _seen(inputs: Any) -> str:
    if not isinstance(inputs, Mapping):
        return str(type(inputs))
    return str(
        {name: tuple(value.shape) if isinstance(value, Tensor) else type(value) for name, value in inputs.items()}
    )
