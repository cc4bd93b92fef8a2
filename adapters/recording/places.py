"""Where tokens lie on an image, a video or a volume: followed from the patches through the recorded operations."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.overlaps import overlaps
from .batch_layout import BatchLayout, rearranged
from .operation_names import ELEMENTWISE, MOVES, PRODUCTS, SOFTMAXES
from .operations import Operation, Slot
from .picks import picks
from .recorder import Recorder

_POOLINGS = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
_MAPS = frozenset(["conv2d", "conv3d", "interpolate", *(f"{name}{axes}d" for name in _POOLINGS for axes in (2, 3))])
_NORMS = frozenset(["layer_norm", "rms_norm", "normalize", "group_norm", "batch_norm", "linear", "addmm", "embedding"])
_REDUCED = frozenset(["amax", "amin", "mean", "max", "min", "sum"])
_MIXES_LAST = PRODUCTS | SOFTMAXES | frozenset(["linear", "addmm", "scaled_dot_product_attention"])
_JOINS = frozenset(["cat", "concat", "concatenate", "stack", "hstack", "vstack"])
_NOWHERE = 2**30

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """The patches' grid, and which token lies at each of its places.

    Attributes:
        sizes: Rows and columns of patches; of videos and volumes frames or slices in front.
        order: The numbers of tokens, row after row.
        coarser: Of tokens of several scales, the grids of the others.
    """

    sizes: tuple[int, ...]
    order: Tensor
    coarser: tuple["Grid", ...] = ()

    @property
    def places(self) -> Tensor:
        """The numbers of all tokens that lie on a grid."""
        return torch.cat([self.order, *(grid.order for grid in self.coarser)])

    def arranged(self, scores: Tensor) -> Tensor:
        """Scores (..., tokens) as (..., *sizes); those of larger patches are spread evenly over them: sums stay."""
        maps: Tensor = scores[..., self.order.to(scores.device)].unflatten(-1, self.sizes)
        for grid in self.coarser:
            part = grid.arranged(scores)
            for axis, (fine, coarse) in enumerate(zip(self.sizes, grid.sizes, strict=True), -len(self.sizes)):
                part = (part.movedim(axis, -1) @ overlaps(coarse, fine).T.to(part)).movedim(-1, axis)
            maps = maps + part
        return maps


def grid_of(recorder: Recorder, slot: Slot, layout: BatchLayout, channels: int) -> Grid | None:
    """The grid on which tokens lie; None where they lie on none, or where that cannot be seen.

    Args:
        recorder: The recording.
        slot: The tokens.
        layout: How the samples lie in them.
        channels: The axis of the channels, with the batch in front.
    """
    video = any(len(recorder.shapes[source]) == 5 for source in recorder.sources)
    for axis in (1, 2) if video else (1,):  # of the channels in the inputs: one of these leads to a grid
        labels = _labels_of(recorder, slot, axis)
        if labels is not None:
            lowest = _lowest(layout.to_batch(labels.numbers).movedim(channels, -1).flatten(1, -2), -1)
            grid = _grid_of_maps(lowest[0], labels.maps) if bool((lowest == lowest[0]).all()) else None
            if grid is not None:
                return grid
    return None


def have_places(recorder: Recorder, slot: Slot) -> bool:
    """Do tokens, or some of them, come from places of an image, one by one?"""
    labels = _labels_of(recorder, slot, 1)
    return labels is not None and bool(labels.numbers.any())


def _grid_of_maps(first: Tensor, maps: tuple[Sizes, ...]) -> Grid | None:
    """The grid of tokens that come from one map, or from several of different sizes: all of a map, or none of it."""
    grids: list[Grid | None] = []
    before = 0
    for sizes in maps:
        last = before + math.prod(sizes)
        own = torch.where((first > before) & (first <= last), first - before, 0)
        before = last
        if bool(own.any()):
            grids.append(_grid(own, sizes))
    found = sorted((grid for grid in grids if grid is not None), key=lambda grid: -math.prod(grid.sizes))
    return replace(found[0], coarser=tuple(found[1:])) if found and len(found) == len(grids) else None


def _grid(first: Tensor, sizes: tuple[int, ...]) -> Grid | None:
    """The grid of tokens of which each has the number of its first place on a map, or 0."""
    known = first > 0
    axes = [torch.unique(places, return_inverse=True) for places in torch.unravel_index(first[known] - 1, sizes)]
    lengths = tuple(len(steps) for steps, _ in axes)
    if not all(lengths) or math.prod(lengths) != int(known.sum()):
        return None
    place = torch.zeros_like(axes[0][1])
    for length, (_, number) in zip(lengths, axes, strict=True):
        place = place * length + number
    order = torch.full((len(place),), -1)
    order[place] = known.nonzero()[:, 0]
    return None if bool((order < 0).any()) else Grid(lengths, order)


class _Labels(NamedTuple):
    """Of each element the number of its place on a map of these sizes, from 1 on, or 0; the lowest of several.

    On several maps the numbers count on from one to the next.
    """

    numbers: Tensor
    maps: tuple[Sizes, ...]


def _labels_of(recorder: Recorder, slot: Slot, channels: int) -> _Labels | None:
    """The labels of a tensor, followed from the nearest maps; None where they cannot be.

    Args:
        recorder: The recording.
        slot: The tensor's.
        channels: The axis of the channels in the inputs.
    """
    known: dict[Slot, _Labels | None] = {}
    begun: set[Slot] = set()
    waiting = [slot]
    while waiting:
        one = waiting[-1]
        if one in known:
            waiting.pop()
        elif _is_map(recorder, one):
            known[one] = _on_map(recorder.shapes[one], channels if one in recorder.sources else 1)
        elif not recorder.writers[one]:
            known[one] = None
        else:
            operation = recorder.writers[one][0]
            begun.add(one)
            sources = [s for s in _sources(recorder, operation, one) if s in known or s not in begun]
            missing = next((s for s in sources if s not in known), None)
            if operation.name not in _JOINS:  # one is enough, the oldest: what goes past a block is followed easily
                found = next((i for i, s in enumerate(sources) if s in known and known[s] is not None), len(sources))
                missing = next((s for s in sources[:found] if s not in known), None)
                sources = sources[found : found + 1]
            if missing is not None:
                waiting.append(missing)
            else:
                known[one] = _made(recorder, operation, one, {s: known[s] for s in sources})
    return known[slot]


def _made(recorder: Recorder, operation: Operation, slot: Slot, sources: dict[Slot, _Labels | None]) -> _Labels | None:
    given = {s: labels for s, labels in sources.items() if labels is not None}
    maps = {labels.maps for labels in given.values()}
    if len(maps) > 1:  # from several maps, of which all but one may have given class tokens only
        maps = {labels.maps for labels in given.values() if bool(labels.numbers.any())}
    if len(maps) > 1 and operation.name in _JOINS:
        given = _counted_on(given)
        maps = {labels.maps for labels in given.values()}
    if not given or len(maps) > 1:
        return None
    first = next(iter(given.values()))
    if operation.name in _MAPS:  # of images that are parts of what the samples are
        return _on_parts(first, recorder.shapes[slot]) if len(first.maps) == 1 else None
    numbers = _moved(recorder, operation, slot, {s: labels.numbers for s, labels in given.items()})
    return None if numbers is None else _Labels(numbers, maps.pop() if maps else first.maps)


def _counted_on(given: dict[Slot, _Labels]) -> dict[Slot, _Labels]:
    """Labels of several maps that are joined, as one numbering of all their places."""
    parts = {slot: labels for slot, labels in given.items() if bool(labels.numbers.any())}
    maps = tuple(sizes for labels in parts.values() for sizes in labels.maps)
    found, before = {}, 0
    for slot, (numbers, own) in given.items():
        found[slot] = _Labels(torch.where(numbers > 0, numbers + before, 0), maps)
        before += sum(math.prod(sizes) for sizes in own) if slot in parts else 0
    return found


def _on_parts(labels: _Labels, shape: torch.Size) -> _Labels | None:
    """The labels of maps of parts: of some channels of the whole, as of heads, of whole frames, or of windows.

    All places of a window have the label of the lowest one in it.
    """
    numbers, (sizes,) = labels
    if len(numbers) != shape[0]:
        return None
    if numbers.shape[2:] == sizes and bool((numbers == _on_map(numbers.shape, 1).numbers).all()):
        return _on_map(shape, 1)
    of_frame = math.prod(sizes[1:])
    if len(sizes) == 3 and len(shape) == 4 and numbers.shape[2:] == sizes[1:]:
        own = torch.arange(1, of_frame + 1, dtype=numbers.dtype).view(sizes[1:])
        frame = (numbers.amin((1, 2, 3)) - 1) // of_frame
        if bool((numbers == own + (frame * of_frame).view(-1, 1, 1, 1)).all()):
            height, width = shape[2:]
            own = torch.arange(1, height * width + 1, dtype=numbers.dtype).view(1, 1, height, width)
            found = own + (frame * height * width).view(-1, 1, 1, 1)
            return _Labels(found.expand(shape), ((sizes[0], height, width),))
    lowest = _lowest(numbers.flatten(1), -1)
    return _Labels(lowest.view(-1, *[1] * (len(shape) - 1)).expand(shape), (sizes,))


def _is_map(recorder: Recorder, slot: Slot) -> bool:
    """Is this the image itself, or a feature map of it? Or a video or volume?"""
    shape = recorder.shapes[slot]
    if len(shape) not in (4, 5) or slot in recorder.sources:
        return len(shape) in (4, 5)
    writers = recorder.writers[slot]
    return bool(writers) and writers[0].name in _MAPS and shape[0] == recorder.shapes[recorder.sources[0]][0]


def _sources(recorder: Recorder, operation: Operation, slot: Slot) -> list[Slot]:
    """From which tensors an operation takes this one place by place, the oldest first."""
    followed = [one for one in dict.fromkeys(operation.inputs) if recorder.follows[one]]
    shape, shapes = recorder.shapes[slot], recorder.shapes
    name = operation.name
    if name in MOVES and name not in ELEMENTWISE:
        return [] if picks(operation) else followed
    if name in _REDUCED or name in _MAPS:
        return followed[:1]
    if name in PRODUCTS or name == "scaled_dot_product_attention":  # a result for each query
        first = operation.inputs[0]
        return [first] if first in followed and shapes[first][:-1] == shape[:-1] and len(shape) > 2 else []
    if name in ELEMENTWISE or name in _NORMS or name in SOFTMAXES or name == "unseen":
        same = [s for s in followed if (shapes[s][:-1] == shape[:-1] and len(shape) > 2) or shapes[s] == shape]
        return sorted(same, key=lambda s: recorder.writers[s][0].index if recorder.writers[s] else -1)
    return []


def _on_map(shape: torch.Size, channels: int) -> _Labels:
    sizes = tuple(size for axis, size in enumerate(shape) if axis not in (0, channels))
    numbers = torch.arange(1, math.prod(sizes) + 1, dtype=torch.int32).view(1, *sizes)
    return _Labels(numbers.unsqueeze(channels).expand(shape), (sizes,))


def _lowest(labels: Tensor, axis: Any, *, keepdim: bool = False) -> Tensor:
    """The lowest number that is not 0."""
    if axis == -1 and labels.stride(-1) == 0:
        return labels[..., :1] if keepdim else labels[..., 0]
    lowest = labels.masked_fill(labels == 0, _NOWHERE).amin(axis, keepdim=keepdim)
    return lowest.masked_fill(lowest == _NOWHERE, 0)


def _moved(recorder: Recorder, operation: Operation, made: Slot, given: dict[Slot, Tensor]) -> Tensor | None:
    """The labels of what an operation made."""
    shape = recorder.shapes[made]
    labels = next(iter(given.values()))
    if operation.name in _REDUCED:
        axes = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else None)
        if axes is None:
            return None
        lowest = _lowest(labels, axes).reshape(shape)
        return torch.zeros_like(lowest) if bool((lowest == lowest.max()).all()) else lowest  # of all places: of none
    if operation.name not in MOVES or operation.name in ELEMENTWISE:
        if labels.shape == shape and operation.name not in _MIXES_LAST:
            return labels
        return _lowest(labels, -1, keepdim=True).expand(shape) if labels.shape[:-1] == shape[:-1] else None
    return rearranged(recorder, operation, made, given)


def covers(grid: Grid, image_size: tuple[int, int]) -> bool:
    """Has a grid the proportions of an image, up to rounding?"""
    height, width = grid.sizes[-2:]
    scale = math.sqrt(image_size[0] * image_size[1] / (height * width))
    return abs(height - image_size[0] / scale) <= 1 and abs(width - image_size[1] / scale) <= 1
