"""The module behind what a user calls: a module, a method of it, a partial, or a compiled function."""

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


def modules_of(root: nn.Module | None) -> list[nn.Module]:
    """All modules of a model, without their names: several times faster than `root.modules()`."""
    if root is None:
        return []
    found: dict[nn.Module, None] = {root: None}
    waiting = [root]
    while waiting:
        for child in waiting.pop()._modules.values():  # noqa: SLF001
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def uncompiled(forward: Forward) -> Forward:
    """The plain function behind one that torch.compile made, whose compiled graph our hooks would not see.

    Raises:
        ValueError: if a part of the model is compiled, or the model compiled itself in place.
    """
    # By the names of torch's attributes: its compiler's classes take seconds to import.
    forward = getattr(forward, "_orig_mod", getattr(forward, "_torchdynamo_orig_callable", forward))
    if isinstance(forward, nn.Module):
        compiled = [m for m in modules_of(forward) if "_orig_mod" in m._modules or m._compiled_call_impl is not None]  # noqa: SLF001
        for name, module in forward.named_modules() if compiled else ():
            if module is compiled[0]:
                raise ValueError(
                    f"Expected a model that is not compiled, but {name or 'the model itself'!r} is. Explain the model "
                    "from before compilation, or use `compiled = torch.compile(model)`, which keeps the original."
                )
    return forward
