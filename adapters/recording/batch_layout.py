"""How the samples of a batch lie in a tensor that a model made."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .continuation import repeated, substituted, tensors_in
from .operation_names import ELEMENTWISE, MOVES
from .operations import Operation, Slot
from .recorder import Recorder


@dataclass(frozen=True)
class BatchLayout:
    """Where the samples are.

    Attributes:
        samples: How many.
        axis: On which axis they lie.
        order: Where several rows of axis 0 belong to one sample (windows, frames): the rows, sample after sample.
    """

    samples: int
    axis: int = 0
    order: Tensor | None = None

    def to_batch(self, tensor: Tensor) -> Tensor:
        """The model's layout to one with the batch as first axis."""
        if self.order is None:
            return tensor.movedim(self.axis, 0)
        batch: Tensor = tensor[self.order.to(tensor.device)].unflatten(0, (self.samples, -1))
        return batch

    def from_batch(self, tensor: Tensor) -> Tensor:
        """The other way round."""
        if self.order is None:
            return tensor.movedim(0, self.axis)
        return tensor.flatten(0, 1)[self.order.argsort().to(tensor.device)]

    def axis_in_batch(self, axis: int, dims: int) -> int:
        """Where an axis of the model's tensor with so many axes is in `to_batch`."""
        if self.order is not None:
            return axis + 1
        order = list(range(dims))
        order.insert(0, order.pop(self.axis))
        return order.index(axis)


def layout_of(recorder: Recorder, slot: Slot, samples: int) -> BatchLayout | None:
    """How the samples lie in a tensor; None if that cannot be told."""
    shape = recorder.shapes[slot]
    fits = [axis for axis, size in enumerate(shape[:-1]) if size == samples]
    if fits == [0]:
        return BatchLayout(samples)
    labels = _samples_of(recorder, slot, samples)
    if labels is None:
        return None
    for axis in fits:
        expected = torch.arange(1, samples + 1).view(-1, *[1] * (len(shape) - 1 - axis))
        if bool(((labels == expected) | (labels == 0)).all()):
            return BatchLayout(samples, axis)
    rows = labels.flatten(1).max(1).values
    if bool((labels.flatten(1) != rows[:, None]).logical_and(labels.flatten(1) != 0).any()):
        return None
    if bool((torch.bincount(rows, minlength=samples + 1)[1:] * samples != shape[0]).any()):
        return None
    return BatchLayout(samples, order=rows.argsort(stable=True))


def _samples_of(recorder: Recorder, slot: Slot, samples: int) -> Tensor | None:
    """Which sample, from 1 on, each element belongs to; 0: none."""
    way = _way_back(recorder, slot, samples)
    if way is None:
        return None
    origin, steps = way
    shape = recorder.shapes[origin]
    labels = torch.arange(1, samples + 1).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    for operation, read, made in steps:
        shape = recorder.shapes[made]
        if operation.name in MOVES and operation.name not in ELEMENTWISE:
            moved = rearranged(recorder, operation, made, {read: labels})
        else:
            moved = labels if labels.shape == shape else _spread(labels, shape)
        if moved is None:
            return None
        labels = moved
    return labels


def _spread(labels: Tensor, shape: torch.Size) -> Tensor | None:
    """Those of what an operation made that keeps all but the last axis, or the first one."""
    if not shape:
        return None
    if labels.shape == shape[:-1]:  # embeddings
        return labels[..., None].expand(shape)
    if labels.shape[:-1] == shape[:-1]:
        return labels.amax(-1, keepdim=True).expand(shape)
    rows = labels.flatten(1)
    label = rows.max(1).values
    if len(labels) != shape[0] or bool(((rows != label[:, None]) & (rows != 0)).any()):
        return None
    return label.view(-1, *[1] * (len(shape) - 1)).expand(shape)


def _way_back(recorder: Recorder, slot: Slot, samples: int) -> tuple[Slot, list[tuple[Operation, Slot, Slot]]] | None:
    """From a tensor to an input, by operations that keep the first axis or rearrange."""
    steps: list[tuple[Operation, Slot, Slot]] = []
    while slot not in recorder.sources:
        if not recorder.writers[slot]:
            return None
        operation = recorder.writers[slot][0]
        followed = [one for one in operation.inputs if recorder.follows[one] and recorder.shapes[one]]
        if operation.name not in MOVES or operation.name in ELEMENTWISE:
            followed = [one for one in followed if recorder.shapes[one][0] == recorder.shapes[slot][0]]
        if not followed:
            return None
        same = [one for one in followed if recorder.shapes[one] == recorder.shapes[slot]]
        if len(same) > 1:  # what goes past a block is followed easily
            read = min(same, key=lambda one: recorder.writers[one][0].index if recorder.writers[one] else -1)
        else:
            read = max(followed, key=lambda one: recorder.shapes[one].numel())
        steps.append((operation, read, slot))
        slot = read
    return (slot, steps[::-1]) if recorder.shapes[slot][0] == samples else None


def rearranged(recorder: Recorder, operation: Operation, made: Slot, labels: Mapping[Slot, Tensor]) -> Tensor | None:
    """The labels of what an operation makes that rearranges tensors; what comes from elsewhere has 0."""
    (like, *_) = labels.values()

    def value(slot: Slot) -> Tensor:  # in floating point, as torch cannot rearrange all patches of integers
        if slot in labels:
            return labels[slot].double()
        kind = recorder.dtypes[slot]  # an index stays one
        return torch.zeros((), dtype=torch.double if kind.is_floating_point else kind).expand(recorder.shapes[slot])

    args, kwargs = substituted((operation.args, operation.kwargs), value)
    try:
        results = tensors_in(repeated(operation, args, kwargs))
    except (RuntimeError, TypeError, IndexError):
        return None
    return results[operation.outputs.index(made)].to(like.dtype) if made in operation.outputs else None
