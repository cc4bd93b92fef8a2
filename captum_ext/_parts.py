"""Parts of a model that a user chooses, as modules or by their names."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from adapters.models import part_named, root_module, uncompiled

P = TypeVar("P")


def chosen_part(argument: str, part: P, forward: Callable[..., Any]) -> P | nn.Module:
    """The part that is meant; what is neither a name nor a module is returned as it is.

    Raises:
        ValueError: if it is no part of the model, or torch.jit made it.
    """
    if isinstance(part, str):
        return part_named(forward, part, argument)
    if not isinstance(part, nn.Module):
        return part
    root = root_module(uncompiled(forward))
    if root is not None and all(part is not module for module in root.modules()):
        raise ValueError(
            f"Expected `{argument}` to be a part of the model, got a {type(part).__name__} that is not in this "
            f"{type(root).__name__}. Take it from the model that is passed."
        )
    if isinstance(part, torch.jit.ScriptModule):
        raise ValueError(
            f"Expected `{argument}` to be a plain module, got a {part.original_name} that torch.jit made: its calls "
            "cannot be watched. Pass the module before it was scripted, or one in front of it."
        )
    return part
