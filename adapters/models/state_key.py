"""A key that changes whenever something changes that a model's answers depend on."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SAMPLED = 8  # values of each tensor that are compared, besides its identity and version
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size])
_CONTAINERS = (nn.Module, Mapping, list, tuple, set, frozenset)
_DICTIONARIES = frozenset([dict, OrderedDict])
_COMPARED = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - frozenset(_COMPARED)

_unchanged: ContextVar[tuple[Any, ...]] = ContextVar("unchanged", default=())


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Inside, in this thread, a model is known not to change, so that its key is not computed again and again."""
    token = _unchanged.set((*_unchanged.get(), model))
    try:
        yield
    finally:
        _unchanged.reset(token)


def state_key(model: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Equal for two calls only if the model's weights, buffers, hooks and attributes are the same; hashable.

    Tensors are compared by identity, version and a few of their values; numbers, strings, arrays, containers and the
    attributes of modules and other objects by what they hold; functions and all else by identity. Not noticed: a change
    of single values through `.data` or another view that torch's version counter does not see.

    Args:
        model: A module. A function gets a key of its own in each call, as nothing is known of it.
        options: Further arguments that the answers depend on.
    """
    if not isinstance(model, nn.Module):
        return Identity(object())
    held = any(model is one for one in _unchanged.get())
    return Identity(model) if held else _described(model), _described(dict(options or {})), _autocast()


class Identity:
    """Equal to the identity of the same object only; holds it, so that nothing else can get its id."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


def _autocast() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _described(root: Any) -> tuple[Any, ...]:
    """Everything that can be reached from an object, breadth first; an object met again is named by its number."""
    parts: list[Any] = []
    tensors: list[Tensor] = []
    numbers = {id(root): 0}
    waiting = [root]
    for value in waiting:  # grows meanwhile
        parts.append(type(value))
        for name, one in _items(value):
            kind = type(one)
            if kind in _PLAIN:
                parts += (name, kind, one)
            elif isinstance(one, Tensor):
                tensors.append(one)
                parts += (name, id(one), 0 if is_lazy(one) or one.is_inference() else one._version)  # noqa: SLF001
            elif id(one) in numbers:
                parts += (name, numbers[id(one)])
            elif not _has_contents(one):
                parts += (name, _by_value_or_identity(one))
            elif one or kind not in _DICTIONARIES:  # most modules have several that are empty
                numbers[id(one)] = len(waiting)
                waiting.append(one)
                parts.append(name)
    return *parts, *_values(tensors)


def _has_contents(value: Any) -> bool:
    return isinstance(value, _CONTAINERS) or (hasattr(value, "__dict__") and not callable(value))


def _by_value_or_identity(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    return Identity(value)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What an object holds, by name or number."""
    if isinstance(value, nn.Module):
        return [item for item in vars(value).items() if item[0] not in _OF_EVERY_MODULE]
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    held: Mapping[Any, Any] = value if isinstance(value, Mapping) else vars(value)
    return held.items()


def _values(tensors: list[Tensor]) -> Iterator[Any]:
    """Shapes and a few values of tensors; nothing of those that have none or do not show them."""
    samples: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if is_lazy(tensor) or tensor.is_nested:
            continue
        yield tensor.shape
        count = tensor.numel()
        if not count or tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            continue
        step = max(1, count // _SAMPLED)
        if tensor.is_contiguous():
            taken = torch.as_strided(tensor.detach(), (min(_SAMPLED, count),), (step,))  # quicker than slicing
        else:
            taken = tensor.detach().reshape(-1)[::step][:_SAMPLED]
        samples.setdefault((tensor.device, tensor.dtype), []).append(taken)
    for kind, parts in samples.items():
        yield kind
        yield torch.cat(parts).cpu().view(torch.uint8).numpy().tobytes()
