"""Answers of a model that several explanations share."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, count
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor, nn

MEMORY = 2**26  # bytes of answers that a metric keeps
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, np.generic)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEPTH = 6  # of settings in objects in objects
_count = count()
_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class Memo:
    """Answers for single inputs, the least recently used of which are forgotten.

    Args:
        size: How many bytes the answers may take.
    """

    def __init__(self, size: int) -> None:
        self._answers: LRUCache[Any, Tensor] = LRUCache(size, getsizeof=lambda answer: answer.nbytes)

    @staticmethod
    def state_of(model: Any, options: Mapping[str, Any] | None = None) -> Any:
        """Something that changes with any weight, buffer, hook or setting of a model; an own object for functions."""
        if not isinstance(model, nn.Module):
            return object()
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            digest.update(name.encode())
            _add(digest, tensor)
        seen: set[int] = set()
        given = sorted((options or {}).items())  # kept, as long as `seen` knows it by its address
        _describe(digest, given, seen)
        for module in model.modules():
            digest.update(f"{id(module)} {type(module)}".encode())
            digest.update(repr([(name, id(child)) for name, child in vars(module)["_modules"].items()]).encode())
            for name, value in vars(module).items():
                if name in _HOOKS or name not in _OF_EVERY_MODULE:
                    digest.update(name.encode())
                    _describe(digest, value, seen)
        return digest.digest()

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
                if found[keys[i]].nbytes <= self._answers.maxsize:
                    self._answers[keys[i]] = found[keys[i]].clone()
        return torch.stack([found[k] for k in keys]).to(x.device)


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, tensor)
    return digest.digest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _describe(digest: Any, value: Any, seen: set[int], depth: int = _DEPTH) -> None:
    """Add what a setting is: values of plain types, containers and objects, identities of functions and modules."""
    digest.update(f"|{type(value)} ".encode())
    if isinstance(value, Tensor):
        _add(digest, value)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, _PLAIN):
        digest.update(repr(value).encode())
    elif callable(value):
        digest.update(str(_number(value)).encode())
    elif depth and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, list | tuple | set | frozenset):
            parts: Iterable[Any] = value
        else:
            parts = chain.from_iterable(
                (value if isinstance(value, Mapping) else getattr(value, "__dict__", {})).items()
            )
        for part in parts:
            _describe(digest, part, seen, depth - 1)


def _number(function: Any) -> tuple[int, ...]:
    """That of a function, or of a method's object and function: no other one ever has it, unlike an address."""
    if hasattr(function, "__func__"):
        return *_number(function.__self__), *_number(function.__func__)
    try:
        return (_numbers.setdefault(function, next(_count)),)
    except TypeError:  # no weak references, or no hash
        return (id(function),)
