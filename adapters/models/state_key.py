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
_SEQUENCES = (list, tuple, set, frozenset)
_CONTAINERS = (nn.Module, Mapping, *_SEQUENCES)
_DICTIONARIES = frozenset([dict, OrderedDict])
_COMPARED = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))

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
    rules: dict[type, str] = {}
    for value in waiting:  # grows meanwhile
        parts.append(type(value))
        for name, one in _items(value):
            kind = type(one)
            parts.append(name)
            if kind in _PLAIN:
                parts += kind, one
            elif (rule := rules.get(kind) or rules.setdefault(kind, _rule(one))) == "tensor":
                tensors.append(one)
                parts.append(id(one))
            elif id(one) in numbers:
                parts.append(numbers[id(one)])
            elif rule == "contents":
                numbers[id(one)] = len(waiting)
                waiting.append(one)
            else:
                parts.append(_by_value_or_identity(one))
    return *parts, *_values(tensors)


def _rule(value: Any) -> str:
    """How values of this type are compared."""
    if isinstance(value, Tensor):
        return "value or identity" if is_lazy(value) else "tensor"
    has_contents = isinstance(value, _CONTAINERS) or (hasattr(value, "__dict__") and not callable(value))
    return "contents" if has_contents else "value or identity"


def _by_value_or_identity(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    return Identity(value)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What an object holds, by name or number; of a module, its own attributes and what is registered with it."""
    if isinstance(value, nn.Module):
        held = vars(value)
        items = [(name, held[name]) for name in held.keys() - _OF_EVERY_MODULE]
        for name in _COMPARED:
            if held[name]:
                items += held[name].items()
        return items
    if isinstance(value, _SEQUENCES):
        return enumerate(value)
    mapping: Mapping[Any, Any] = value if type(value) in _DICTIONARIES or isinstance(value, Mapping) else vars(value)
    return mapping.items()


@torch.inference_mode()  # views are cheapest there
def _values(tensors: list[Tensor]) -> list[Any]:
    """Versions, shapes and a few values of tensors; nothing of those that have none or do not show them."""
    found: list[Any] = []
    groups: dict[tuple[Any, ...], list[Tensor]] = {}
    for tensor in tensors:
        found.append(0 if tensor.is_inference() else tensor._version)  # noqa: SLF001
        if not tensor.is_nested:
            found.append(tensor.shape)
            kind = tensor.device, tensor.dtype, tensor.layout
            if kind in groups:
                groups[kind].append(tensor)
            else:
                groups[kind] = [tensor]
    for kind, members in groups.items():
        found.append(kind)
        if members[0].layout is torch.strided and not (members[0].is_meta or members[0].is_quantized):
            samples = torch.cat([_sample(tensor) for tensor in members])
            found.append(samples.cpu().view(torch.uint8).numpy().tobytes())
    return found


def _sample(tensor: Tensor) -> Tensor:
    """A few values, evenly spread."""
    count = tensor.numel()
    size, step = (_SAMPLED, count // _SAMPLED) if count > _SAMPLED else (count, 1)
    if tensor.is_contiguous():
        return torch.as_strided(tensor, (size,), (step,))  # quicker than slicing
    return tensor.reshape(-1)[::step][:size]
