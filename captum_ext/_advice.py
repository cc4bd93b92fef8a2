"""What to write instead, for calls that new users make."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from adapters.models import root_module, uncompiled
from adapters.recording import TokenPass

from .partial_map_warning import PartialMapWarning


def on_inputs(given: Any) -> str:
    """The message about inputs that are no tensors, with the line to write."""
    expected = "Expected `inputs` to be a tensor or a tuple of tensors"
    if isinstance(given, Mapping):
        return f"{expected}, got {_kind(given)} of {list(given)}. {_of_mapping(given)}"
    if isinstance(given, list) and given and isinstance(given[0], Tensor):
        return (
            f"{expected}, got a list of {len(given)} tensors: `torch.stack(inputs)`, if they are samples of one size."
        )
    if isinstance(given, list) and given:
        return f"{expected}, got a list. Of each: {_one(given[0])} Then `torch.cat(...)` of all."
    return f"{expected}, got {_one(given)}"


def _one(given: Any) -> str:
    if isinstance(given, str):
        return (
            f"the string {given[:60]!r}. Of a text: `tokenizer(text, return_tensors='pt')['input_ids']`; of an image's "
            "path: `transform(PIL.Image.open(path).convert('RGB')).unsqueeze(0)`, with the model's transform."
        )
    if isinstance(given, np.ndarray):
        return f"a numpy array of shape {given.shape} and {given.dtype}: `torch.from_numpy(inputs)`."
    if hasattr(given, "convert") and hasattr(given, "getbands"):
        return (
            "a PIL image. Transform it as the model was trained: of timm "
            "`timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image).unsqueeze(0)`, of "
            "torchvision `weights.transforms()(image).unsqueeze(0)`, of transformers `processor(image, "
            "return_tensors='pt')['pixel_values']`."
        )
    return f"{_kinds(given)}."


def check_model(given: Any) -> None:
    """See that it can be explained.

    Raises:
        TypeError: if it is no model and no function; the message has the line to write.
    """
    expected = "Expected `forward_func` to be a model or a function"
    if isinstance(given, str):
        raise TypeError(
            f"{expected}, got the string {given!r}. Build the model: `timm.create_model({given!r}, pretrained=True)"
            f".eval()`, or of transformers `AutoModelForImageClassification.from_pretrained({given!r})`."
        )
    if inspect.isclass(given):
        raise TypeError(
            f"{expected}, got the class {given.__name__}. Make a model of it first: `{given.__name__}(...).eval()`."
        )
    if not isinstance(given, nn.Module) and isinstance(getattr(given, "model", None), nn.Module):
        raise TypeError(f"{expected}, got a {type(given).__name__} around one. Pass its `.model`.")
    if not callable(given):
        raise TypeError(f"{expected}, got {type(given)}.")


def warn_of_features(forward: Callable[..., Any], targets: list[Any]) -> None:
    """Say that the index of a model without a head is that of a feature."""
    root = root_module(uncompiled(forward))
    numbers = [one for one in targets if isinstance(one, int)]
    if numbers and getattr(root, "num_classes", None) == 0:
        warnings.warn(
            f"This {type(root).__name__} has no head (num_classes=0), so {numbers[0]} is the number of a feature, not "
            "of a class. Explain the model with its head, or a ConceptTarget.",
            stacklevel=_level_of_caller(),
        )


def warn_of_others(run: TokenPass) -> None:
    """Say that the prediction depends on attentions that the map does not show."""
    behind = run.watched.behind
    if behind is not None:
        warnings.warn(
            "Behind the last attention that is known the model weights tokens by products of tokens "
            f"(`{behind.name}`), as an attention without a softmax does, or one whose weights are changed behind it. "
            "This map is that of the attention before it. Pass `layer=` the module whose output times gradient you "
            "want; `CDAM(model, attention=-1)` says that the last known one is meant.",
            PartialMapWarning,
            stacklevel=_level_of_caller(),
        )
    count, known = len(run.watched.beside), len(run.watched.finder.calls)
    if count:
        warnings.warn(
            f"The prediction also depends on {count} of this model's {known} attentions that do not lead to the last "
            "one (an ensemble, several views, branches or towers). What reaches it through them is not in this map. "
            "Explain one of these parts alone; `CDAM(model, attention=-1)` says that the last one is meant.",
            PartialMapWarning,
            stacklevel=_level_of_caller(),
        )
    elif run.watched.branches:
        names = ", ".join(dict.fromkeys(f"`{one.name}`" for one in run.watched.branches))
        warnings.warn(
            f"The prediction also depends on a part of this model without attention, which reads the inputs by {names} "
            "and does not lead to the last attention (a CNN beside it, a skip from the image). What reaches the "
            "prediction through it is not in this map. Explain one of these parts alone; `CDAM(model, attention=-1)` "
            "says that the last attention is meant.",
            PartialMapWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """The `stacklevel` at which a warning of the function that asks is that of the user's line."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals["__name__"].partition(".")[0] in ("captum_ext", "captum"):
        frame, level = frame.f_back, level + 1
    return level


def _of_mapping(given: Mapping[Any, Any]) -> str:
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    first = next((name for name in ("pixel_values", "input_ids", "input_values") if name in tensors), None)
    if first is None:
        return f"Pass the tensor: `inputs[{tensors[0]!r}]`." if tensors else "Ask for tensors: `return_tensors='pt'`."
    others = [name for name in tensors if name != first]
    if not others:
        return f"Pass the tensor: `inputs[{first!r}]`."
    return (
        f"Pass the tensor, `inputs[{first!r}]`, and bind the others by name: "
        f"`functools.partial(model, {', '.join(f'{name}=inputs[{name!r}]' for name in others)})`."
    )


def _kind(given: Any) -> str:
    return f"a {type(given).__name__}" if given is not None else "None"


def _kinds(given: Any) -> str:
    return str([type(x) for x in given]) if isinstance(given, tuple) else str(type(given))
