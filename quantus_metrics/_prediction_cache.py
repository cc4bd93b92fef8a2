"""Predictions that several explanations share."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from adapters.models import digest_of

MEMORY = 2**26  # bytes of predictions that a metric keeps
_OVERHEAD = 512  # bytes of a tensor and its key besides its values


class PredictionCache:
    """Predictions for single inputs, of which the least recently used are evicted.

    Args:
        size: The capacity in bytes.
    """

    def __init__(self, size: int) -> None:
        self._predictions: LRUCache[Any, Tensor] = LRUCache(size, getsizeof=_size)

    def rows(self, key: Any, x: Tensor, asked: Sequence[Hashable], compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Predictions (batch, ...), of which only the missing ones are computed.

        Args:
            key: Everything else that they depend on.
            x: The inputs.
            asked: What is asked of each, as its class.
            compute: Returns the predictions of some of them, by index.
        """
        keys = [(key, one, digest_of(row)) for row, one in zip(x, asked, strict=True)]
        found = {k: self._predictions[k] for k in keys if k in self._predictions}
        first = {k: i for i, k in reversed(list(enumerate(keys))) if k not in found}
        if first:
            missing = sorted(first.values())
            predictions = compute(torch.tensor(missing))
            found |= {keys[i]: one for i, one in zip(missing, predictions, strict=True)}
            for i in missing:
                if _size(found[keys[i]]) <= self._predictions.maxsize:
                    self._predictions[keys[i]] = found[keys[i]].clone()
        return torch.stack([found[k] for k in keys]).to(x.device)


def _size(prediction: Tensor) -> int:
    return prediction.nbytes + _OVERHEAD
