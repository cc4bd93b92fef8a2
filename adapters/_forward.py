"""The model behind what a user calls: a module, a method of it, a partial, or a function that refers to it."""

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

Forward = Callable[..., Any]

_WRITES = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"))
_EMPTY = types.CellType()


def root_module(forward: Forward, part: nn.Module | None = None) -> nn.Module | None:
    """The module behind a forward function, or None.

    That is itself, or the owner of a bound method, or what a partial wraps; or, if a part of it is given, the one
    module which a function refers to that has this part.
    """
    if isinstance(forward, functools.partial) and (root := root_module(forward.func)) is not None:
        return root
    owner = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
    if isinstance(owner, nn.Module):
        return owner
    modules = {x for x in references(forward) if isinstance(x, nn.Module) and any(m is part for m in x.modules())}
    return modules.pop() if len(modules) == 1 else None


def rebound(forward: Forward, root: nn.Module, copy: nn.Module) -> Forward | None:
    """What calls the copy where `forward` calls the model; None if that is unknown."""

    def exchanged(x: Any) -> Any:
        return copy if x is root else x

    if forward is root:
        return copy
    if isinstance(forward, functools.partial):
        inner = rebound(forward.func, root, copy) or (forward.func if _names(forward, root) else None)
        keywords = {name: exchanged(value) for name, value in forward.keywords.items()}
        return None if inner is None else functools.partial(inner, *map(exchanged, forward.args), **keywords)
    if inspect.ismethod(forward) and forward.__self__ is root:
        return types.MethodType(forward.__func__, copy)
    if not isinstance(forward, types.FunctionType) or not _is_transparent(forward, root):
        return None
    names = [name for name, value in _globals(forward) if value is root]
    function = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, **dict.fromkeys(names, copy)} if names else forward.__globals__,
        forward.__name__,
        tuple(map(exchanged, forward.__defaults__ or ())),
        tuple(
            types.CellType(copy) if cell != _EMPTY and cell.cell_contents is root else cell
            for cell in forward.__closure__ or ()
        ),
    )
    function.__kwdefaults__ = {name: exchanged(value) for name, value in (forward.__kwdefaults__ or {}).items()}
    return function


def modules_of(forward: Forward) -> list[nn.Module]:
    """The modules that a function refers to, also in lists and dictionaries."""
    return [x for x in pytree.tree_leaves(references(forward)) if isinstance(x, nn.Module)]


def references(forward: Forward) -> list[Any]:
    """What a function or a partial refers to by its arguments, closure, globals and defaults."""
    if isinstance(forward, functools.partial):
        return [*forward.args, *forward.keywords.values(), *references(forward.func)]
    if not isinstance(forward, types.FunctionType):
        return []
    closure = [cell.cell_contents for cell in forward.__closure__ or () if cell != _EMPTY]
    defaults = [*(forward.__defaults__ or ()), *(forward.__kwdefaults__ or {}).values()]
    return [*closure, *(value for _, value in _globals(forward)), *defaults]


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_names
    return ((name, function.__globals__[name]) for name in names if name in function.__globals__)


def _names(forward: functools.partial[Any], root: nn.Module) -> bool:
    return any(x is root for x in (*forward.args, *forward.keywords.values()))


def _is_transparent(function: types.FunctionType, root: nn.Module) -> bool:
    """Does a function refer to the model itself, not in a function inside, and does it leave what it refers to?"""
    return (
        any(x is root for x in references(function))
        and not any(isinstance(constant, types.CodeType) for constant in function.__code__.co_consts)
        and not any(instruction.opname in _WRITES for instruction in dis.get_instructions(function))
    )
