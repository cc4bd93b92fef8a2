"""Reading one tensor from whatever a model returns."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

OutputChoice = str | int | tuple[str | int, ...] | Callable[[Any], Tensor] | None

_SIMILARITIES = {
    "image": ("logits_per_image",),
    "video": ("logits_per_video",),
    "audio": ("logits_per_audio", "logits_per_speech"),
    "text": ("logits_per_text",),
}
_EMBEDDINGS = ("image_embeds", "text_embeds", "audio_embeds", "video_embeds", "embeddings", "sentence_embedding")
_REPRESENTATIONS = ("pooler_output", "last_hidden_state")
_BESIDE = ("hidden_state", "hidden_states", "features", "attentions", "mask", "token_embeddings")  # no predictions
_MOST_LISTED = 12
_CHOOSE = "Choose one, as `output={}`, or by a function of what the model returns."
_RETURN_ONE = "Pass a function or a module that returns one of them alone."


def output_tensor(
    output: Any, choice: OutputChoice = None, given: Tensor | None = None, *, advice: str = _CHOOSE
) -> Tensor:
    """The tensor to explain in what a model returned: by name, or the only one; never by its position among several.

    Of a ModelOutput, dataclass, named tuple or dictionary: `logits`; else the similarities of the inputs that are
    explained (`logits_per_image` for an image, `logits_per_text` for token ids, and so on); `prediction_logits`; the
    one embedding, as `image_embeds`; `pooler_output`; `last_hidden_state`. Losses, numbers without an axis, integers,
    auxiliary outputs (`aux`) and what is nested do not count.

    Args:
        output: What the model returned.
        choice: Which one: a name or index, a tuple of them or a name with dots for what is nested, or a function of
            `output`. None: as above.
        given: The inputs that are explained, if they are known.
        advice: What to do if several could be meant, with `{}` for one of them.

    Raises:
        TypeError: if there is no tensor in it, or the choice is none of these.
        ValueError: if several tensors could be meant, or the choice is not there; the message lists what is.
    """
    if choice is not None:
        return _chosen(output, choice)
    if isinstance(output, Tensor):
        return output
    found: dict[Any, Tensor] = {n: value for n, value in _fields(output).items() if _may_be_meant(n, value)}
    for name in ("logits", *_SIMILARITIES.get(_kind(given), ()), "prediction_logits"):
        if name in found:
            return found[name]
    several = {n: value for n, value in found.items() if value.dim() and not str(n).startswith("aux")} or found
    several = _without_representations(several)
    if len(several) == 1:
        return next(iter(several.values()))
    if not several:
        raise TypeError(
            f"Expected the model to return a tensor, or a tuple or dictionary with one, got {type(output)}."
            f"{_listed(output, several, advice)}"
        )
    listed = _listed(output, several, advice)
    raise ValueError(f"The model returned several tensors, of which any could be meant.{listed}")


def only_tensor(output: Any, given: Tensor | None = None) -> Tensor:
    """The same where there is no `output` by which the user can choose."""
    return output_tensor(output, given=given, advice=_RETURN_ONE)


def logits_of(output: Any, count: int | None = None) -> Tensor:
    """The logits (batch, classes) in a model's output.

    Args:
        output: What the model returned.
        count: How many inputs it was given; None: not checked.

    Raises:
        TypeError: if there is no tensor in it.
        ValueError: if its shape is another, or several tensors could be meant.
    """
    found = only_tensor(output)
    if found.dim() != 2 or len(found) != (len(found) if count is None else count):
        expected = "batch" if count is None else count
        raise ValueError(f"Expected the model to return logits ({expected}, classes), got {tuple(found.shape)}.")
    return found


def _fields(output: Any) -> dict[Any, Any]:
    """What an output holds, by name or number."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if dataclasses.is_dataclass(output) or hasattr(output, "__dict__"):
        return dict(vars(output))
    return {}


def _may_be_meant(name: Any, value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and name != "loss"


def _kind(given: Tensor | None) -> str:
    """Which kind of inputs a tensor is, by its axes."""
    if given is None:
        return ""
    if not given.is_floating_point():
        return "text"
    return {4: "image", 5: "video"}.get(given.dim(), "audio")


def _without_representations(found: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """Of representations of a known order the first one, if nothing else could be meant."""
    embeddings = [name for name in _EMBEDDINGS if name in found]
    known = [*embeddings, *(name for name in _REPRESENTATIONS if name in found)]
    others = [name for name in found if name not in known and not str(name).endswith(_BESIDE)]
    return {known[0]: found[known[0]]} if known and not others and len(embeddings) < 2 else found


def _chosen(output: Any, choice: OutputChoice) -> Tensor:
    if callable(choice):
        found, said = choice(output), f"`output` ({getattr(choice, '__name__', type(choice).__name__)})"
    else:
        if isinstance(choice, bool) or not isinstance(choice, str | int | tuple):
            raise TypeError(f"Expected `output` to be a name, an index, a tuple of them or a function, got {choice!r}.")
        found, said = _followed(output, choice), f"`output={choice!r}`"
    if not isinstance(found, Tensor):
        missing = "is not in what the model returned" if found is None else f"is no tensor but {type(found)}"
        raise ValueError(f"{said} {missing}.{_listed(output, dict(_tensors(output)), _CHOOSE)}")
    return found


def _followed(output: Any, choice: str | int | tuple[str | int, ...]) -> Any:
    fields = _fields(output)
    if not isinstance(choice, tuple) and choice in fields:
        return fields[choice]
    parts = choice.split(".") if isinstance(choice, str) else choice if isinstance(choice, tuple) else (choice,)
    found = output
    for part in parts:
        fields, names = _fields(found), list(_fields(found))
        number = int(part) if isinstance(part, int) or part.lstrip("-").isdigit() else None
        if number is not None and part not in fields and -len(names) <= number < len(names):
            part = names[number]
        found = fields.get(part)
    return found


def _tensors(output: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """All tensors in an output that could be chosen, by their paths."""
    for name, value in _fields(output).items():
        if _may_be_meant(name, value):
            yield (*path, name), value
        elif not isinstance(value, Tensor) and len(path) < 6:
            yield from _tensors(value, (*path, name))


def _listed(output: Any, several: dict[Any, Tensor], advice: str) -> str:
    """What can be chosen, for a message."""
    if isinstance(output, Tensor):
        return f" It is one tensor, of shape {tuple(output.shape)}: leave `output` out."
    tensors = several or dict(_tensors(output))
    paths = {(n[0] if isinstance(n, tuple) and len(n) == 1 else n): value for n, value in tensors.items()}
    if not paths:
        return ""
    listed = [f"{path!r} {tuple(value.shape)}" for path, value in paths.items()]
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return f" There are {', '.join(listed[:_MOST_LISTED])}{more}. {advice.format(repr(next(iter(paths))))}"
