"""Repeating operations in float32 that were recorded in half precision, so that small differences are not rounded."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .operation_names import name_of

_HALF = (torch.float16, torch.bfloat16)
_OPERATORS = frozenset(["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"])


class WideTypes(TorchFunctionMode):
    """While active, torch's functions of this thread read tensors of half precision as float32, without autocast.

    What is changed in place keeps its type.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        changed = args[:1] if _changes_the_first(name_of(func), args, kwargs) else ()
        args, kwargs = pytree.tree_map(_wide, (args[len(changed) :], kwargs))
        device = next((x.device.type for x in pytree.tree_leaves(args) if isinstance(x, Tensor)), None)
        if device is None or not torch.is_autocast_enabled(device):
            return func(*changed, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return func(*changed, *args, **kwargs)


def _changes_the_first(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Is the first argument changed in place?"""
    flag = kwargs.get("inplace") is True or any(x is True for x in args[1:])  # as of relu
    return flag or name in _OPERATORS or (name.endswith("_") and not name.startswith("__"))


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value
