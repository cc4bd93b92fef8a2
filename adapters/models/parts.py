"""Parts of a model by their names."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from .unwrapping import root_module, uncompiled


def part_named(forward: Callable[..., Any], name: str, argument: str) -> nn.Module:
    """The module of a model that has this name in `model.named_modules()`.

    Args:
        forward: The model, a method of it or a partial of one.
        name: Such as `"blocks.11.norm1"`.
        argument: Which argument it was given as, for messages.

    Raises:
        ValueError: if there is none, or the model is inside a function.
    """
    root = root_module(uncompiled(forward))
    if root is None:
        raise ValueError(
            f"`{argument}={name!r}` is looked up in a model, but this is a function: pass the module itself."
        )
    named = dict(root.named_modules())
    found: nn.Module | None = named.get(name) if name else None
    if found is not None:
        return found
    close = difflib.get_close_matches(name, named, 3)
    said = (
        f" Did you mean {' or '.join(map(repr, close))}?"
        if close
        else f" Its parts are {[n for n, _ in root.named_children()]}."
    )
    raise ValueError(f"Expected `{argument}` to be a part of this {type(root).__name__}, got {name!r}.{said}")
