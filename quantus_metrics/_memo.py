"""Answers of a model that several explanations share."""

import hashlib
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor, nn

MEMORY = 2**26  # bytes of answers that a metric keeps
_BESIDE = 512  # bytes of a tensor and its key beside its values
_STATES = 32  # of models
_LOOKED_AT = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Memo:
    """Answers for single inputs, the least recently used of which are forgotten.

    Args:
        size: How many bytes the answers may take.
    """

    def __init__(self, size: int) -> None:
        self._answers: LRUCache[Any, Tensor] = LRUCache(size, getsizeof=_size)
        self._states: LRUCache[Any, _Same] = LRUCache(_STATES)

    def state_of(self, model: Any, options: Mapping[str, Any] | None = None) -> Any:
        """Something that changes with any weight, buffer, hook or setting of a model; an own object for functions."""
        if not isinstance(model, nn.Module):
            return _Same(object())
        state = _value(options or {}, {}), _value(model, {}), _autocast()
        return self._states.setdefault(state, _Same(object()))

    def rows(self, key: Any, x: Tensor, y: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """(batch, ...) answers, of which only the missing ones are computed.

        Args:
            key: What else the answers depend on.
            x: The inputs.
            y: The classes.
            compute: Returns the answers of some of them, by index.
        """
        keys = [(key, int(cls), _digest(one)) for one, cls in zip(x, y, strict=True)]
        found = {k: self._answers[k] for k in keys if k in self._answers}
        first = {k: i for i, k in reversed(list(enumerate(keys))) if k not in found}
        if first:
            missing = sorted(first.values())
            answers = compute(torch.tensor(missing, device=y.device))
            found |= {keys[i]: answer for i, answer in zip(missing, answers, strict=True)}
            for i in missing:
                if _size(found[keys[i]]) <= self._answers.maxsize:
                    self._answers[keys[i]] = found[keys[i]].clone()
        return torch.stack([found[k] for k in keys]).to(x.device)


def _size(answer: Tensor) -> int:
    return answer.nbytes + _BESIDE


def _autocast() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, tensor)
    return digest.digest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _value(value: Any, seen: dict[int, Any]) -> Any:
    """A hashable description, equal to an earlier one only if nothing in `value` was changed or replaced since.

    Values of plain types, tensors, arrays, containers and the attributes of modules and other objects are described by
    what they hold, everything else, as a function, by itself: the description keeps it, so nothing else can get its id.
    """
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if id(value) in seen:
        return "again", seen[id(value)][0]
    seen[id(value)] = len(seen), value  # kept until the end, so that no id is used twice
    return type(value), _inside(value, seen)


def _inside(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, nn.Module):
        value = {k: v for k, v in vars(value).items() if k in _LOOKED_AT or k not in _OF_EVERY_MODULE}
    elif not isinstance(value, Mapping | list | tuple | set | frozenset):
        if callable(value) or not hasattr(value, "__dict__"):
            return _Same(value)
        value = vars(value)
    parts = chain.from_iterable(value.items()) if isinstance(value, Mapping) else value
    return tuple(_value(part, seen) for part in parts)


class _Same:
    """Equal to itself only."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)
