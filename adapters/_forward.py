"""The model behind what a user calls: a module, a method of it, or a partial."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]


def root_module(forward: Forward) -> nn.Module | None:
    """The module behind a forward function: itself, the owner of a bound method, or what a partial wraps; or None."""
    if isinstance(forward, functools.partial):
        return root_module(forward.func)
    owner = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None
