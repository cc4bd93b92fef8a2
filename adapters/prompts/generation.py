"""Generation that keeps what enters the last layer, and that layer run once more for all tokens together."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.evaluation_mode import evaluation_mode
from ..models.stand_in import run_stand_in
from .answered_prompts import AnsweredPrompts, answered_prompts, logits_of_answers

_OWN = ("max_new_tokens", "input_ids", "inputs", "attention_mask", "return_dict_in_generate", "output_logits")


@dataclass(frozen=True)
class Generated:
    """What a model answered, and what its last layer read meanwhile.

    Attributes:
        answers: The token ids of each sample's answer, up to the end of its turn.
        steps: The same with the padding behind it, as many tokens for each sample.
        logits: (batch, steps, words), of the passes of generation.
        hidden: (batch, tokens, channels) that entered the last layer; None if they were not kept.
        layers: The layers up to that one.
        returns_tuple: Does a layer return a tuple?
    """

    answers: list[list[int]]
    steps: list[list[int]]
    logits: Tensor
    hidden: Tensor | None
    layers: list[nn.Module]
    returns_tuple: bool


def generated(
    model: Any, inputs: Mapping[str, Any], max_new_tokens: int, options: Mapping[str, Any], *, keep: bool
) -> Generated:
    """Let a model answer.

    Args:
        model: A model of transformers that generates.
        inputs: As for `answered_prompts`.
        max_new_tokens: How many tokens at most.
        options: Further arguments of `generate`.
        keep: Keep what enters the last layer.

    Raises:
        TypeError: if the model does not generate, or an option is set here.
        ValueError: if beams are asked for, whose order changes while they run, or several answers of a prompt.
    """
    if not callable(getattr(model, "generate", None)):
        raise TypeError(f"Expected a model with a `generate` method, got {type(model).__name__}.")
    for name in ("max_length", *_OWN):
        if name in options:
            raise TypeError(f"Expected no `{name}` for generation, which is set here; `max_new_tokens` says how many.")
    if options.get("num_return_sequences", 1) != 1:
        raise ValueError("Expected one answer a prompt: repeat the prompt in the batch, not by `num_return_sequences`.")
    config = getattr(model, "generation_config", None)
    if options.get("num_beams", getattr(config, "num_beams", None)) not in (None, 1):
        raise ValueError("Expected generation without beams, which change places while they run: `num_beams=1`.")
    prompts = answered_prompts(model, inputs, [[0]] * len(inputs["input_ids"]))
    named = {name: value for name, value in prompts.named.items() if name not in ("position_ids", "decoder_input_ids")}
    kept = _Kept(last_layers(model) if keep else [])
    with kept, evaluation_mode(model):
        found = model.generate(
            input_ids=prompts.ids,
            **named,
            **{"do_sample": False, "num_beams": 1, **options},
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = torch.stack(found.logits, 1)
    steps = found.sequences[:, -logits.shape[1] :].tolist()
    ends = _ends(model, options)
    answers = [step[: next((k + 1 for k, i in enumerate(step) if i in ends), len(step))] for step in steps]
    hidden = kept.hidden()
    whole = hidden is not None and hidden.shape[:2] == (len(steps), prompts.ids.shape[1] + logits.shape[1] - 1)
    return Generated(answers, steps, logits, hidden if whole else None, kept.layers, kept.returns_tuple)


def _ends(model: Any, options: Mapping[str, Any]) -> list[int]:
    """The token ids with which an answer ends."""
    found = options.get("eos_token_id", getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def last_layers(model: Any) -> list[nn.Module]:
    """The decoder's layers up to the last one that has an attention; none if they are not found."""
    get: Any = getattr(model, "get_decoder", None)
    decoder = model if get is None else get()
    lists = [one for one in decoder.children() if isinstance(one, nn.ModuleList)] if decoder is not None else []
    layers = list(max(lists, key=len, default=[]))
    while layers and not any("att" in name for name, _ in layers[-1].named_modules()):
        layers.pop()
    return layers


class _Kept:
    """While active, keeps what enters the last of some layers in this thread."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.returns_tuple = False
        self._parts: list[Tensor] = []
        self._hooks: list[Any] = []  # torch's handles

    def __enter__(self) -> None:
        thread = threading.get_ident()

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _first(args, kwargs)
            if threading.get_ident() == thread and isinstance(given, Tensor):
                self._parts.append(given.detach())

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            self.returns_tuple = isinstance(output, tuple)

        for layer in self.layers[-1:]:
            self._hooks = [
                layer.register_forward_pre_hook(enter, with_kwargs=True),
                layer.register_forward_hook(leave),
            ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def hidden(self) -> Tensor | None:
        """(batch, tokens, channels), all that entered."""
        fits = self._parts and all(part.dim() == 3 and part.shape[0] == self._parts[0].shape[0] for part in self._parts)
        return torch.cat(self._parts, 1) if fits else None


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def tail(
    model: nn.Module, inputs: Mapping[str, Any], made: Generated
) -> tuple[AnsweredPrompts, Callable[[Tensor], Tensor], list[Tensor]]:
    """The answers as the last layer read them, and how the logits follow from what entered it.

    Returns:
        The prompts with their answers; a function of (batch, tokens, channels) that returns the rows of logits; and
        what it returned, call by call.
    """
    seen: list[Tensor] = []
    texts = {name: x for name, x in inputs.items() if not (isinstance(x, Tensor) and x.is_floating_point())}
    prompts = answered_prompts(model, texts, made.steps)
    *earlier, last = made.layers
    rows = made.logits.shape[1]
    parts = {part: partial(_on_last_rows, part, rows) for part in _parts_of_rows(last)}

    def passed_by(*args: Any, **kwargs: Any) -> Any:
        hidden = _first(args, kwargs)
        return (hidden,) if made.returns_tuple else hidden

    def logits(hidden: Tensor) -> Tensor:
        def on_hidden(*args: Any, **kwargs: Any) -> Any:
            given = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return run_stand_in(last, parts, hidden, *args[1:], **given)

        forwards = {**dict.fromkeys(earlier, passed_by), last: on_hidden}

        def run(**named: Any) -> Any:
            return run_stand_in(model, forwards, **named)

        seen.append(logits_of_answers(model, prompts, call=run)(prompts.ids))
        return seen[-1]

    return prompts, logits, seen


def _parts_of_rows(layer: nn.Module) -> list[nn.Module]:
    """The parts of a layer beside its attention, such as its MLP, that are more than a norm."""
    named = [(name, part) for name, part in layer.named_children() if any(True for _ in part.children())]
    return [part for name, part in named if not any("att" in one for one in (name, *dict(part.named_modules())))]


def _on_last_rows(part: nn.Module, rows: int, *args: Any, **kwargs: Any) -> Any:
    """What a part makes of the rows that logits are read from; other rows are passed by, as nothing reads them."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() == 3:
        read = args[0][:, -rows:].contiguous()
        made = part(read)
        if isinstance(made, Tensor) and made.shape == read.shape:
            return torch.cat([args[0][:, :-rows], made], 1)
    return part(*args, **kwargs)


def agrees(made: Generated, found: Tensor) -> bool:
    """Are these the logits of the generation, up to rounding?"""
    found = found.detach()
    given = made.logits.to(found)  # generation has them in float32
    finite = torch.isfinite(given)
    eps: float = max(torch.finfo(x.dtype).eps for x in (made.logits, found))
    error = torch.where(finite, (found - given).abs(), 0).max()
    return found.shape == given.shape and bool(error <= eps**0.5 * torch.where(finite, given.abs(), 0).max())
