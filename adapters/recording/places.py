"""Where tokens lie on an image: followed from the patches to the tokens through the recorded operations."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batch_layout import BatchLayout
from .continuation import substituted, tensors_in
from .operation_names import ELEMENTWISE, MOVES
from .recorder import Operation, Recorder, Slot

_MAPS = frozenset(["conv2d", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"])
_BY_INDEX = frozenset(["gather", "index_select", "take_along_dim"])
_NORMS = frozenset(["layer_norm", "rms_norm", "normalize", "group_norm", "batch_norm", "linear", "addmm", "embedding"])


@dataclass(frozen=True)
class Grid:
    """The patches' grid, and which token lies at each of its places.

    Attributes:
        height: Rows of patches.
        width: Columns.
        order: (height * width,) numbers of tokens, row after row.
    """

    height: int
    width: int
    order: Tensor


def grid_of(recorder: Recorder, slot: Slot, layout: BatchLayout, channels: int) -> Grid | None:
    """The grid on which tokens lie; None where they lie on none, or where that cannot be seen.

    Args:
        recorder: The recording.
        slot: The tokens.
        layout: How the samples lie in them.
        channels: The axis of the channels, with the batch in front.
    """
    route = _route(recorder, slot)
    if route is None:
        return None
    origin, steps = route
    labels = _labels(recorder, origin)
    if labels is None:
        return None
    start, size = labels
    for operation, read, made in steps:
        moved = _moved(recorder, operation, read, made, start)
        if moved is None:
            return None
        start = moved
    table = layout.to_batch(start).movedim(channels, -1).flatten(1, -2)
    first = table[0]
    if bool((table != first).any()):
        return None
    height, width = size
    if origin in recorder.sources:
        found = _patches(first, width)
        if found is None:
            return None
        first, height, width = found
    else:
        label = first.max(1).values  # constants may be among the channels
        if bool(((first != label[:, None]) & (first != 0)).any()):
            return None
        first = label
    order = torch.full((height * width + 1,), -1, dtype=torch.long)
    order[first] = torch.arange(len(first))
    counts = torch.bincount(first, minlength=height * width + 1)[1:]
    if bool((counts != 1).any()):
        return None
    return Grid(height, width, order[1:])


def _patches(pixels: Tensor, image_width: int) -> tuple[Tensor, int, int] | None:
    """Labels of patches from the pixels (tokens, pixels) that each token holds; 0 where it holds none."""
    known = (pixels > 0).all(1)
    corner = torch.where(known, pixels.min(1).values - 1, 0)
    rows, columns = corner // image_width, corner % image_width
    ys, xs = rows[known].unique(), columns[known].unique()
    if len(ys) * len(xs) != int(known.sum()):
        return None
    label = torch.searchsorted(ys, rows) * len(xs) + torch.searchsorted(xs, columns) + 1
    return torch.where(known, label, 0), len(ys), len(xs)


_Step = tuple[Operation, Slot, Slot]


def _route(recorder: Recorder, slot: Slot) -> tuple[Slot, list[_Step]] | None:
    """The nearest feature map, or the image itself, that tokens come from place by place, and the way from there."""
    came: dict[Slot, _Step | None] = {slot: None}
    waiting = [slot]
    while waiting:
        one = max(waiting, key=lambda s: recorder.writers[s][0].index if recorder.writers[s] else -1)
        waiting.remove(one)
        if _is_map(recorder, one):
            steps, here = [], one
            while (step := came[here]) is not None:
                steps.append(step)
                here = step[2]
            return one, steps
        for operation in recorder.writers[one][:1]:
            for read in _kept_places(recorder, operation, one):
                if read not in came:
                    came[read] = (operation, read, one)
                    waiting.append(read)
    return None


def _is_map(recorder: Recorder, slot: Slot) -> bool:
    if slot in recorder.sources:
        return len(recorder.shapes[slot]) == 4
    writers = recorder.writers[slot]
    return bool(writers) and writers[0].name in _MAPS and len(recorder.shapes[slot]) == 4


def _kept_places(recorder: Recorder, operation: Operation, slot: Slot) -> list[Slot]:
    """From which tensors an operation takes this one place by place."""
    followed = [one for one in operation.inputs if recorder.follows[one]]
    shape = recorder.shapes[slot]
    if operation.name in MOVES and operation.name not in ELEMENTWISE:
        if operation.name in _BY_INDEX or any(isinstance(x, Slot) for x in _indices(operation)):
            return []
        return followed
    if operation.name in ELEMENTWISE or operation.name in _NORMS:
        return [
            one
            for one in followed
            if (recorder.shapes[one][:-1] == shape[:-1] and len(shape) > 2) or recorder.shapes[one] == shape
        ]
    return [one for one in followed if recorder.shapes[one] == shape and operation.name in _SAME]


_SAME = frozenset(["unseen", "normalize"])


def _indices(operation: Operation) -> tuple[Any, ...]:
    if operation.name != "__getitem__":
        return ()
    index = operation.args[1]
    return index if isinstance(index, tuple) else (index,)


def _labels(recorder: Recorder, slot: Slot) -> tuple[Tensor, tuple[int, int]] | None:
    """Numbers from 1 on for each place of a map, in its shape."""
    shape = recorder.shapes[slot]
    height, width = shape[2], shape[3]
    places = torch.arange(1, height * width + 1).view(1, 1, height, width)
    return places.expand(shape), (height, width)


def _moved(recorder: Recorder, operation: Operation, read: Slot, made: Slot, labels: Tensor) -> Tensor | None:
    shape = recorder.shapes[made]
    if operation.name not in MOVES or operation.name in ELEMENTWISE:
        if labels.shape == shape:
            return labels
        return labels[..., :1].expand(shape) if labels.shape[:-1] == shape[:-1] else None

    def value(slot: Slot) -> Tensor:
        if slot == read:
            return labels
        return torch.zeros(1, dtype=labels.dtype).expand(recorder.shapes[slot])

    args, kwargs = substituted((operation.args, operation.kwargs), value)
    try:
        results = tensors_in(operation.func(*args, **kwargs))
    except (RuntimeError, TypeError, IndexError):
        return None
    return results[operation.outputs.index(made)] if made in operation.outputs else None


def covers(grid: Grid, image_size: tuple[int, int]) -> bool:
    """Has a grid the proportions of an image, up to rounding?"""
    scale = math.sqrt(image_size[0] * image_size[1] / (grid.height * grid.width))
    return abs(grid.height - image_size[0] / scale) <= 1 and abs(grid.width - image_size[1] / scale) <= 1
