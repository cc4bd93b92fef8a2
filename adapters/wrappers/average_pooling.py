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
        features: The map, (batch, channels, height, width) or (batch, height, width, channels); of signals and volumes
            (batch, channels, length) and (batch, channels, depth, height, width).
        channels_last: Which of the two.
        keeps_axes: Does the average keep the map's axes with length one?
    """

    features: Tensor
    channels_last: bool
    keeps_axes: bool

    def shaped(self, vectors: Tensor) -> Tensor:
        """Vectors (batch, channels) in the shape and number type of the average."""
        vectors = vectors.to(self.features.dtype)
        if not self.keeps_axes:
            return vectors
        axes = [1] * (self.features.dim() - 2)
        return vectors.view(len(vectors), *axes, -1) if self.channels_last else vectors.view(*vectors.shape, *axes)


Answer = Callable[[AveragePooling], Tensor | None]


class WatchAverages(TorchFunctionMode):
    """Inside, each average of a map is shown to `answer`, which may return something else for it.

    Acts on this thread only.

    Args:
        answer: Told of each average.
        axes: How many a map has.
    """

    def __init__(self, answer: Answer, axes: int) -> None:
        super().__init__()
        self._answer, self._axes = answer, axes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        pooling = average_pooling(func, args, kwargs or {}, self._axes)
        answer = None if pooling is None else self._answer(pooling)
        return func(*args, **(kwargs or {})) if answer is None else answer


def average_pooling(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: int
) -> AveragePooling | None:
    """What a call of a torch function averages; None if it is not all positions of a map of so many axes."""
    if func not in _READERS:
        return None
    given = dict(zip(_READERS[func][0], args, strict=False)) | dict(kwargs)
    features = given.pop("input", None)
    if not isinstance(features, Tensor) or features.dim() != axes:
        return None
    return _READERS[func][1](features, given)


def _adaptive(features: Tensor, given: Mapping[str, Any]) -> AveragePooling | None:
    size = given["output_size"]
    return AveragePooling(features, False, True) if set(_each(size, features)) == {1} else None


def _windowed(features: Tensor, given: Mapping[str, Any]) -> AveragePooling | None:
    kernel, size = _each(given["kernel_size"], features), tuple(features.shape[2:])
    whole = kernel == size or (
        bool(given.get("ceil_mode"))  # then a larger window is cut to the map
        and all(wide >= side for wide, side in zip(kernel, size, strict=True))
        and (not given.get("stride") or _each(given["stride"], features) == kernel)
    )
    whole = whole and not any(_each(given.get("padding", 0), features))
    return AveragePooling(features, False, True) if whole and not given.get("divisor_override") else None


def _mean(features: Tensor, given: Mapping[str, Any]) -> AveragePooling | None:
    axes = given.get("dim", given.get("axis"))
    if axes is None:
        return None
    count = features.dim()
    over = sorted(axis % count for axis in (axes if isinstance(axes, tuple | list) else (axes,)))
    channels_last = count == 4 and over == [1, 2]
    if over != list(range(2, count)) and not channels_last:
        return None
    return AveragePooling(features, channels_last, bool(given.get("keepdim")))


def _each(value: Any, features: Tensor) -> tuple[Any, ...]:
    """One value for each axis of a map."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * (features.dim() - 2)


_ADAPTIVE = ("input", "output_size"), _adaptive
_WINDOWED = (
    ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    _windowed,
)
_MEAN = ("input", "dim", "keepdim"), _mean
_READERS: dict[Callable[..., Any], tuple[tuple[str, ...], Callable[..., AveragePooling | None]]] = {
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _ADAPTIVE),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _WINDOWED),
    torch.mean: _MEAN,
    Tensor.mean: _MEAN,
}
