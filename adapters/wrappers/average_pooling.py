"""Seeing, and replacing, the averages that a network takes of its feature maps, whatever function takes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class AveragePooling:
    """An average over all positions of a map.

    Attributes:
        features: The map, (batch, channels, height, width) or (batch, height, width, channels).
        channels_last: Which of the two.
        keeps_axes: Does the average keep two axes of length one?
    """

    features: Tensor
    channels_last: bool
    keeps_axes: bool

    def shaped(self, vectors: Tensor) -> Tensor:
        """Vectors (batch, channels) in the shape and number type of the average."""
        vectors = vectors.to(self.features.dtype)
        if not self.keeps_axes:
            return vectors
        return vectors[:, None, None] if self.channels_last else vectors[:, :, None, None]


Answer = Callable[[AveragePooling], Tensor | None]


class WatchAverages(TorchFunctionMode):
    """Inside, each average of a map is shown to `answer`, which may return something else for it.

    Acts on this thread only.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        pooling = average_pooling(func, args, kwargs or {})
        answer = None if pooling is None else self._answer(pooling)
        return func(*args, **(kwargs or {})) if answer is None else answer


def average_pooling(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> AveragePooling | None:
    """What a call of a torch function averages; None if it is not all positions of a map."""
    if func not in _READERS:
        return None
    given = dict(zip(_READERS[func][0], args, strict=False)) | dict(kwargs)
    features = given.pop("input", None)
    if not isinstance(features, Tensor) or features.dim() != 4:
        return None
    return _READERS[func][1](features, given)


def _adaptive(features: Tensor, given: Mapping[str, Any]) -> AveragePooling | None:
    return AveragePooling(features, False, True) if _pair(given["output_size"]) == (1, 1) else None


def _windowed(features: Tensor, given: Mapping[str, Any]) -> AveragePooling | None:
    whole = _pair(given["kernel_size"]) == tuple(features.shape[2:]) and _pair(given.get("padding", 0)) == (0, 0)
    return AveragePooling(features, False, True) if whole and not given.get("divisor_override") else None


def _mean(features: Tensor, given: Mapping[str, Any]) -> AveragePooling | None:
    axes = given.get("dim", given.get("axis"))
    if not isinstance(axes, tuple | list):
        return None
    over = sorted(axis % 4 for axis in axes)
    return AveragePooling(features, over == [1, 2], bool(given.get("keepdim"))) if over in ([1, 2], [2, 3]) else None


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


_ADAPTIVE = ("input", "output_size"), _adaptive
_WINDOWED = (
    ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    _windowed,
)
_MEAN = ("input", "dim", "keepdim"), _mean
_READERS: dict[Callable[..., Any], tuple[tuple[str, ...], Callable[..., AveragePooling | None]]] = {
    F.adaptive_avg_pool2d: _ADAPTIVE,
    F.avg_pool2d: _WINDOWED,
    torch.mean: _MEAN,
    Tensor.mean: _MEAN,
}
