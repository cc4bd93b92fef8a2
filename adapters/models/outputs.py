"""Reading one tensor from whatever a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NAMES = ("logits", "image_embeds", "pooler_output")


def output_tensor(output: Any) -> Tensor:
    """The tensor to explain in a model's output: a tensor, a tuple (named or not), a dictionary or a ModelOutput.

    By name `logits`, `image_embeds` or `pooler_output`, whichever comes first; else the first tensor.

    Raises:
        TypeError: if there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    for name in _NAMES:
        named = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(named, Tensor):
            return named
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"Expected the model to return a tensor, or a tuple or dictionary with one, got {type(output)}.")


def logits_of(output: Any, count: int | None = None) -> Tensor:
    """The logits (batch, classes) in a model's output.

    Args:
        output: What the model returned.
        count: How many inputs it was given; None: not checked.

    Raises:
        TypeError: if there is no tensor in it.
        ValueError: if its shape is another.
    """
    found = output_tensor(output)
    if found.dim() != 2 or len(found) != (len(found) if count is None else count):
        expected = "batch" if count is None else count
        raise ValueError(f"Expected the model to return logits ({expected}, classes), got {tuple(found.shape)}.")
    return found
