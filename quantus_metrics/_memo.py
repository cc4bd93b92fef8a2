"""Answers of a model that several explanations share."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor, nn

MEMORY = 2**26  # bytes of answers that a metric keeps
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEPTH = 4  # of settings in objects in objects


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
        for name, value in sorted((options or {}).items()):
            digest.update(name.encode())
            _describe(digest, value, _DEPTH)
        for module in model.modules():
            digest.update(f"{id(module)} {type(module)}".encode())
            digest.update(repr([(name, id(child)) for name, child in vars(module)["_modules"].items()]).encode())
            for name, value in vars(module).items():
                if name in _HOOKS or name not in _OF_EVERY_MODULE:
                    digest.update(name.encode())
                    _describe(digest, value, _DEPTH)
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


def _describe(digest: Any, value: Any, depth: int) -> None:
    """Add what a setting is: values of plain types, containers and objects, identities of functions and modules."""
    if isinstance(value, Tensor):
        _add(digest, value)
    elif isinstance(value, _PLAIN):
        digest.update(repr(value).encode())
    elif depth == 0 or callable(value):
        digest.update(f"{type(value)} {id(value)}".encode())
    elif isinstance(value, list | tuple | set | frozenset | Mapping):
        digest.update(f"{type(value)} {len(value)}".encode())
        for part in value.items() if isinstance(value, Mapping) else value:
            _describe(digest, part, depth - 1)
    else:
        digest.update(str(type(value)).encode())
        _describe(digest, getattr(value, "__dict__", {}), depth - 1)
