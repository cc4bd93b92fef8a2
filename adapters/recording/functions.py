"""Which functions of torch are recorded in their own way: as their parts, as another function, or not at all."""

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .operation_names import ABOUT_SHAPES, name_of, name_tells_of_change

# The body of torch's function without its first line, which would send it here again as a whole: its parts are seen.
_multi_head_attention = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda *_: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


# What is made like another tensor depends on that one's shape or type only, and is recorded so.
_AS_ANOTHER: dict[str, Callable[[Tensor, Tensor], tuple[Any, str, tuple[Any, ...]]]] = {
    "type_as": lambda x, y: (Tensor.to, "to", (x, y.dtype)),
    "expand_as": lambda x, y: (Tensor.expand, "expand", (x, tuple(y.shape))),
    "view_as": lambda x, y: (Tensor.view, "view", (x, tuple(y.shape))),
    "reshape_as": lambda x, y: (Tensor.reshape, "reshape", (x, tuple(y.shape))),
}


ABOUT_SHAPE, TYPE, OTHER = "about its shape", "type", "other"
known_functions: dict[Callable[..., Any], tuple[str, str | None, bool]] = {}
_MOST_FUNCTIONS = 4096
_IN_PARTS = (F.multi_head_attention_forward, Tensor.__iter__, F.scaled_dot_product_attention)
_JOINS = frozenset(["cat", "concat", "concatenate"])


def function_of(func: Callable[..., Any]) -> tuple[str, str | None, bool]:
    """A function's name, whether it is treated in its own way, and whether it may change its first argument.

    Found once for each.
    """
    name = name_of(func)
    kind = None
    if name in ABOUT_SHAPES:
        kind = ABOUT_SHAPE
    elif name == "type":
        kind = TYPE
    elif func in _IN_PARTS or name in _JOINS or name in _AS_ANOTHER:
        kind = OTHER
    if len(known_functions) >= _MOST_FUNCTIONS:
        known_functions.clear()
    found = known_functions[func] = name, kind, name_tells_of_change(name)
    return found


def rewritten(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], str, tuple[Any, ...], Mapping[str, Any]]:
    """The call of another function that does the same, where that one says more."""
    if name in _AS_ANOTHER and len(args) == 2 and isinstance(args[1], Tensor):
        return *_AS_ANOTHER[name](*args), kwargs
    if name in _JOINS and "out" not in kwargs and (full := _joined_with_nothing(args, kwargs)) is not None:
        return Tensor.clone, "clone", (full,), {"memory_format": torch.contiguous_format}
    return func, name, args, kwargs


def in_parts(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The same in Python, for functions that do several things of which each shall be seen."""
    if func is F.multi_head_attention_forward:
        return _multi_head_attention
    if func is Tensor.__iter__:
        return _iterate
    if func is F.scaled_dot_product_attention and kwargs.get("enable_gqa"):
        return _attend_in_groups
    return None


def _iterate(tensor: Tensor) -> Iterator[Tensor]:
    return iter(tensor.unbind(0))


def _attend_in_groups(query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool, **kwargs: Any) -> Tensor:
    """Grouped queries written out, as torch's documentation of `enable_gqa` defines them."""
    key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)


def _joined_with_nothing(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The one full tensor among several that are joined, as an empty cache is joined with the first keys."""
    tensors: list[Tensor] = []
    collect((*args, *kwargs.values()), tensors)
    full = [x for x in tensors if x.dim() != 1 or x.numel()]
    return full[0] if len(full) == 1 < len(tensors) and full[0].dim() > 1 else None


def collect(values: Any, found: list[Tensor]) -> None:
    """The tensors in arguments, in order."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            collect(value, found)
        elif isinstance(value, dict):
            collect(value.values(), found)
