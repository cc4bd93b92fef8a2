"""Reading one tensor from whatever a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NAMES = ("logits", "image_embeds", "pooler_output")


def bare_output(output: Any) -> Tensor:
    """The logits of a model's output: a tensor, a tuple (named or not), a dictionary or a transformers ModelOutput.

    By name `logits`, `image_embeds` or `pooler_output`, whichever comes first; else the first tensor.

    Raises:
        TypeError: if there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    for name in _NAMES if isinstance(output, Mapping) or hasattr(output, "_fields") else ():
        named = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(named, Tensor):
            return named
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"Expected the model to return a tensor, or a tuple or dictionary with one, got {type(output)}.")
