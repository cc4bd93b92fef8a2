"""Running a model with some of its modules' forwards exchanged, without touching the model."""

import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

Forward = Callable[..., Any]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
M = TypeVar("M", bound=nn.Module)


def shadow(root: M, forwards: Mapping[nn.Module, Forward]) -> M:
    """A stand-in for a model that shares every part with it, but runs other forwards for some of its modules.

    Only the modules on the way to an exchanged one are copied, and shallowly: weights, buffers and all other modules
    are the model's own. So no hook is needed, the model is not changed for a moment, and threads do not meet. An
    exchanged module's own hooks do not run, unless its new forward calls the module itself.
    """
    done: dict[nn.Module, nn.Module] = {}

    def stand_in(module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        forward = forwards.get(module)
        children = own = vars(module)["_modules"]
        if forward is None:
            children = {name: None if child is None else stand_in(child) for name, child in children.items()}
            if all(children[name] is child for name, child in own.items()):
                done[module] = module
                return module
        copy = object.__new__(type(module))
        copy.__dict__.update(module.__dict__, _modules=children)
        if forward is not None:
            copy.__dict__.update({hooks: OrderedDict() for hooks in HOOKS}, forward=forward)
        done[module] = copy
        return copy

    return stand_in(root)  # type: ignore[return-value] # a copy of the root is of the root's type


def rebound(forward: Forward, root: nn.Module, copy: nn.Module) -> Forward | None:
    """What calls the copy where `forward`, the model or a method of it, calls the model; None if that is unknown."""
    if forward is root:
        return copy
    if isinstance(forward, functools.partial):
        inner = rebound(forward.func, root, copy)
        return None if inner is None else functools.partial(inner, *forward.args, **forward.keywords)
    if inspect.ismethod(forward) and forward.__self__ is root:
        return types.MethodType(forward.__func__, copy)
    return None
