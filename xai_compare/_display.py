"""Signals, volumes and images as pictures for the report."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

Array = npt.NDArray[Any]
_SIDE = 56  # of maps, at most
_WIDTH = 448  # of signals and their maps, at most
_HEIGHT, _LANE = 288, 48  # of all channels of a signal, and of one, at most
_INK, _PAPER = 40, 255
_PLACES = 1024  # of a small map, at most


def flat(values: Array) -> Array:
    """An image (..., height, width) as it is, of a volume (..., depth, height, width) the middle slices side by side.

    Args:
        values: (channels, ...). Of a volume the slices across each axis are shown; what is beside them is NaN.
    """
    if values.ndim != 4:
        return values
    slices = [np.take(values, values.shape[axis] // 2, axis) for axis in (1, 2, 3)]
    height = max(one.shape[1] for one in slices)
    padded = [np.pad(one, ((0, 0), (0, height - one.shape[1]), (0, 0)), constant_values=np.nan) for one in slices]
    return np.concatenate(padded, 2)


def shown_map(values: Array) -> Array:
    """A map of one channel, averaged down to few rows and columns; a signal's is one row."""
    heat = np.asarray(flat(values.astype(np.float32)[None])[0])
    heat, side = (heat[None], _WIDTH) if heat.ndim == 1 else (heat, _SIDE)
    scale = side / max(heat.shape)
    if scale >= 1:
        return heat
    size = max(1, round(heat.shape[0] * scale)), max(1, round(heat.shape[1] * scale))
    return F.adaptive_avg_pool2d(torch.as_tensor(heat)[None, None], size)[0, 0].numpy()


def small_map(values: Array) -> npt.NDArray[np.float32]:
    """A map averaged over its channels, and down to at most 1,024 places with its proportions, as 32 x 32 of a square.

    Args:
        values: (channels, ...) of a signal, an image or a volume.
    """
    small = torch.as_tensor(values.astype(np.float32)).double().mean(0)  # sums are exact, so equal values stay equal
    for axis, size in enumerate(_few(tuple(small.shape))):
        last = small.movedim(axis, -1)
        pooled = F.adaptive_avg_pool1d(last.reshape(1, -1, last.shape[-1]), size)
        small = pooled.reshape(*last.shape[:-1], size).movedim(-1, axis)
    return np.asarray(small.numpy(), np.float32)


def _few(shape: tuple[int, ...]) -> list[int]:
    """The sides of a small map of this shape."""
    longest = max(shape)
    smaller = ([max(1, round(side * kept / longest)) for side in shape] for kept in range(longest, 0, -1))
    return next(sides for sides in smaller if math.prod(sides) <= _PLACES)


def visible(image: Array, normalised: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A sample (channels, ...) as a picture (height, width, 3).

    Args:
        image: What `flat` returns of it.
        normalised: The mean and std that images were normalised with, to undo it; may be empty.
    """
    if image.ndim == 2:
        return _lines(image)
    mean, std = (np.asarray(normalised.get(key, [0]), dtype=float).reshape(-1, 1, 1) for key in ("mean", "std"))
    low, high = np.nanmin(image), np.nanmax(image)
    if normalised and len(mean) in (1, len(image)):
        image = image * std + mean
    elif low < 0 or high > 1.5:
        image = (image - low) / max(float(high - low), 1e-12)
    image = np.nan_to_num(image[:3] if len(image) >= 3 else image[:1].repeat(3, 0))
    drawn: npt.NDArray[np.uint8] = (255 * np.clip(image, 0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    return drawn


def _lines(signal: Array) -> npt.NDArray[np.uint8]:
    """Each channel of a signal as a line over its own range, one below the other."""
    lane = min(_LANE, max(6, _HEIGHT // len(signal)))
    picture = Image.new("L", (_WIDTH, lane * len(signal)), _PAPER)
    draw = ImageDraw.Draw(picture)
    across = (np.arange(signal.shape[1]) + 0.5) * _WIDTH / signal.shape[1]
    for number, channel in enumerate(signal.astype(float)):
        low, high = channel.min(), channel.max()
        heights = lane * (number + 0.9 - 0.8 * (channel - low) / ((high - low) or 1))
        draw.line(list(zip(across.tolist(), heights.tolist(), strict=True)), fill=_INK, width=1)
    return np.asarray(picture.convert("RGB"))
