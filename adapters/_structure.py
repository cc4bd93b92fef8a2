"""What decides which tokens a model's output reads, as something to compare: everything but its weights."""

import functools
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ._forward import references

_PLAIN = (bool, int, float, str, bytes, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEPTH = 3  # of settings in objects in objects


def structure_of(
    root: nn.Module, forward: Callable[..., Any], modules: list[nn.Module], inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The structure of a call of a model: its modules, their classes' functions and settings, the kinds of inputs.

    Two structures are equal only while everything they were made of lives, as references to it are weak.

    Args:
        root: The model.
        forward: What calls it.
        modules: The parts of it that matter.
        inputs: The call's arguments; of tensors only dimensions and types matter, and whether the batch is one sample,
            which hides what is not repeated with it.
    """
    first = next((x for x in inputs if isinstance(x, Tensor)), None)
    leaves, shape = pytree.tree_flatten(inputs)
    classes = {base for module in modules for base in type(module).__mro__ if base is not nn.Module}
    seen: set[int] = set()
    return (
        tuple((weakref.ref(module), _settings(module, seen), _indices(module)) for module in modules),
        frozenset((base, name, _reference(f)) for base in classes for name, f in vars(base).items() if callable(f)),
        _called(forward, seen, _DEPTH),
        tuple((x.dim(), x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves),
        str(shape),
        first is not None and len(first) == 1,
        next((parameter.dtype for parameter in root.parameters()), None),
    )


def _settings(module: nn.Module, seen: set[int]) -> Any:
    """The module's own attributes, such as the kind of pooling."""
    return _frozen({k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}, seen, _DEPTH)


def _indices(module: nn.Module) -> tuple[Any, ...]:
    """Buffers that may select tokens."""
    return tuple(_index(buffer) for buffer in module.buffers(recurse=False))


def _index(tensor: Tensor) -> Any:
    if tensor.is_floating_point() or tensor.is_inference():
        return Tensor
    return weakref.ref(tensor), tensor._version  # noqa: SLF001 # there is no other


def _frozen(value: Any, seen: set[int], depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _index(value)
    if isinstance(value, nn.Module | types.ModuleType):
        return type(value)
    if callable(value):
        return _called(value, seen, depth)
    if depth == 0 or id(value) in seen:
        return type(value)
    if isinstance(value, Mapping):
        return tuple((str(k), _frozen(v, seen, depth - 1)) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(v, seen, depth - 1) for v in value)
    seen.add(id(value))
    return type(value), _frozen(getattr(value, "__dict__", {}), seen, depth - 1)


def _called(function: Any, seen: set[int], depth: int) -> Any:
    """Of a function made anew for each call what it does and refers to; of any other, which it is."""
    if depth == 0 or id(function) in seen or not isinstance(function, types.FunctionType | functools.partial):
        return _reference(function)
    seen.add(id(function))
    refers = tuple(_frozen(value, seen, depth - 1) for value in references(function))
    if isinstance(function, functools.partial):
        return _called(function.func, seen, depth), tuple(function.keywords), refers
    return function.__code__, refers


def _reference(function: Any) -> Any:
    """The function, without keeping alive what it belongs to."""
    owner = getattr(function, "__self__", None)
    if owner is not None and hasattr(function, "__func__"):
        return _reference(owner), _reference(function.__func__)
    try:
        return weakref.ref(function)
    except TypeError:
        return id(function)
