"""Repeating recorded operations for some rows of their tensors only, where that is known to change nothing else.

A row is what belongs to one token. Most operations of a transformer treat each row alone: linear layers, norms,
activations, additions. As long as only such operations follow an attention, and then a few rows are picked, only these
rows have to be computed. `RowPlan` follows the axis of the rows through recorded operations, finds the rows that are
picked, and repeats the operations for these. An operation that is not known to keep rows apart ends that: then all rows
are needed.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .continuation import autocast_of, repeated, substituted, tensors_in
from .operation_names import ELEMENTWISE, PRODUCTS
from .operations import Operation, Slot
from .recorder import Recorder

MOST_ROWS = 8

_VIEWED = frozenset(
    [
        "transpose",
        "permute",
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "adjoint",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
    ]
)
_RESHAPED = frozenset(["view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel"])
_REDUCED = frozenset(["mean", "sum", "var", "std", "norm", "vector_norm", "amax", "amin"])
_EXPANDED = frozenset(["expand", "expand_as"])


class NotInClosedFormError(Exception):
    """The model, or this call of it, does not allow the closed form; says why."""


class Axis(NamedTuple):
    """The axis on which rows lie; of one that holds more, how many before and after each block of rows.

    Of a part of the rows, `start` and `stop` are the first one and the one behind the last; None: there are all.
    """

    axis: int
    outer: int = 1
    inner: int = 1
    start: int = 0
    stop: int | None = None


class RowPlan:
    """How recorded operations are repeated for some rows.

    Args:
        recorder: The recording.
        operations: The operations, in order.
        start: The axis of the rows in each tensor that is given; None where it has none.
        count: How many rows there are.
        externals: The other tensors that the operations read.

    Attributes:
        axes: The axis of the rows in each tensor on the way.
        picked: The rows that are picked: numbers, or one tensor with a number for each sample; None: no rows are.

    Raises:
        NotInClosedFormError: if an operation is not known to keep rows apart.
    """

    def __init__(
        self,
        recorder: Recorder,
        operations: list[Operation],
        start: dict[Slot, Axis | None],
        count: int,
        externals: dict[Slot, Tensor],
    ) -> None:
        self._recorder = recorder
        self._operations = operations
        self._count = count
        self._externals = externals
        self.axes: dict[Slot, Axis | None] = dict(start)
        self._picks: set[int] = set()
        self._each: Tensor | None = None
        for operation in operations:
            self._follow(operation)

    @property
    def picked(self) -> list[int] | Tensor | None:
        """The rows that are picked."""
        if self._each is not None:
            if self._picks:
                raise NotInClosedFormError("the output reads rows that differ between samples, and others")
            return self._each
        return sorted(self._picks) if self._picks else None

    # Following the axis

    def _follow(self, operation: Operation) -> None:
        if operation.mutated is not None and operation.mutated not in self.axes:
            raise NotInClosedFormError(f"`{operation.name}` changes a tensor in place")
        with_rows = [slot for slot in operation.inputs if self.axes.get(slot) is not None]
        if not with_rows:
            self._made(operation, None)
            return
        try:
            axis = self._axis_of(operation, with_rows)
        except NotInClosedFormError:
            parts = [self.axes[slot] for slot in with_rows]
            if any(part is None or part.stop is None for part in parts):
                raise
            for slot in with_rows:  # a few rows were picked, which here come together
                self.settle(slot)
            axis = None
        self._made(operation, axis)

    def settle(self, slot: Slot) -> None:
        """A part of the rows counts as picked."""
        axis = self.axes.get(slot)
        if axis is not None and axis.stop is not None:
            self._pick(range(axis.start, axis.stop))

    def _made(self, operation: Operation, axis: Axis | None) -> None:
        for slot in operation.outputs:
            self.axes[slot] = axis

    def _axis_of(self, operation: Operation, with_rows: list[Slot]) -> Axis | None:
        name, slot = operation.name, with_rows[0]
        axis, shape = self.axes[slot], self._recorder.shapes[slot]
        assert axis is not None  # noqa: S101 # for the type checker
        out = self._recorder.shapes[operation.outputs[0]]
        if name in ELEMENTWISE:
            return self._aligned(operation, with_rows, len(out))
        if name in ("linear", "layer_norm", "rms_norm"):
            last = len(shape) - (1 if name == "linear" else len(_normalized(operation, shape)))
            if axis.axis < last and len(with_rows) == 1:
                return axis
        if name == "addmm" and len(with_rows) == 1 and slot == operation.args[1] and axis.axis == 0:
            return axis
        if name in PRODUCTS and name in ("matmul", "__matmul__") and operation.args[0] == slot and len(with_rows) == 1:
            other = operation.args[1]
            if (
                self.axes.get(other, "external") == "external"
                and len(self._recorder.shapes[other]) == 2
                and axis.axis < len(shape) - 1
            ):
                return axis
        if name == "normalize" and axis.axis not in _dims(operation, len(shape), 1, 2):
            return axis
        if name in _REDUCED and (dims := _dims(operation, len(shape), None, 1)) and axis.axis not in dims:
            kept = len(out) == len(shape)
            return axis if kept else axis._replace(axis=axis.axis - sum(dim < axis.axis for dim in dims))
        if name in _RESHAPED:
            made = _reshaped(axis, shape, out, len(self._range(axis)))
            return made._replace(start=axis.start, stop=axis.stop)
        if name in _VIEWED:
            return self._viewed(operation, axis, shape)
        if name == "cat" and len(with_rows) == len(operation.inputs):
            dim = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else 0)
            axes = [self.axes[one] for one in operation.inputs]
            if dim % len(shape) != axis.axis:
                if len(set(axes)) == 1:
                    return axis
            else:
                return self._joined(axis, [one for one in axes if one is not None])
        if name == "stack" and len({self.axes.get(one) for one in operation.inputs}) == 1:
            dim = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else 0) % (len(shape) + 1)
            return axis._replace(axis=axis.axis + (dim <= axis.axis))
        if name == "__getitem__":
            return self._taken(operation, axis, shape)
        if name == "select":
            dim, index = operation.args[1] % len(shape), operation.args[2]
            if dim == axis.axis:
                self._pick([self._range(axis)[index]])
                return None
            return axis._replace(axis=axis.axis - (dim < axis.axis))
        raise NotInClosedFormError(f"`{name}` is not known to keep tokens apart, so the output may read all of them")

    def _aligned(self, operation: Operation, with_rows: list[Slot], dims: int) -> Axis:
        """The common axis, counted from the right as in broadcasting."""
        found = set()
        for slot in with_rows:
            axis = self.axes[slot]
            assert axis is not None  # noqa: S101
            found.add(axis._replace(axis=axis.axis - len(self._recorder.shapes[slot]) + dims))
        if len(found) != 1:
            raise NotInClosedFormError(f"`{operation.name}` mixes tokens")
        axis = found.pop()
        for slot in operation.inputs:
            if slot in self.axes and self.axes[slot] is None:
                shape = self._recorder.shapes[slot]
                place = axis.axis - dims + len(shape)
                if place >= 0 and shape[place] != 1:
                    raise NotInClosedFormError(f"`{operation.name}` mixes tokens")
        return axis

    def _viewed(self, operation: Operation, axis: Axis, shape: torch.Size) -> Axis:
        """Told by the strides of a view of an empty tensor."""
        empty = torch.empty(shape, device="meta")
        args, kwargs = substituted((operation.args, operation.kwargs), lambda _: empty)
        found = set()
        for view in tensors_in(operation.func(*args, **kwargs)):
            fits = [
                i
                for i in range(view.dim())
                if view.stride(i) == empty.stride(axis.axis) and view.shape[i] == shape[axis.axis]
            ]
            if len(fits) != 1:
                raise NotInClosedFormError(f"`{operation.name}` takes tokens apart")
            found.add(fits[0])
        if len(found) != 1:
            raise NotInClosedFormError(f"`{operation.name}` takes tokens apart")
        return axis._replace(axis=found.pop())

    def _taken(self, operation: Operation, axis: Axis, shape: torch.Size) -> Axis | None:
        """An index: of other axes it may only move the rows' one, of the rows it picks."""
        index = _full_index(operation.args[1], len(shape))
        tensors = [i for i in index if isinstance(i, Slot)]
        if tensors:
            self._take_each(index, axis)
            return None
        source = made = 0
        result: Axis | None = None
        for one in index:
            if one is None:
                made += 1
                continue
            if source == axis.axis:
                kept = self._range(axis)[one]
                if isinstance(kept, int):
                    self._pick([kept])
                elif kept.step == 1 and len(kept):
                    whole = len(kept) == self._count
                    result = axis._replace(
                        axis=made, start=0 if whole else kept.start, stop=None if whole else kept.stop
                    )
                else:
                    raise NotInClosedFormError("the output reads some tokens in between")
            made += not isinstance(one, int)
            source += 1
        return result

    def _range(self, axis: Axis) -> range:
        """The rows that lie on an axis."""
        return range(axis.start, self._count if axis.stop is None else axis.stop)

    def _joined(self, axis: Axis, parts: list[Axis]) -> Axis:
        """Parts of the rows put together again."""
        ranges = [self._range(part) for part in parts]
        follow = all(a.stop == b.start for a, b in itertools.pairwise(ranges))
        if not follow or len({part._replace(start=0, stop=None) for part in parts}) != 1:
            raise NotInClosedFormError("tokens are put together with others")
        whole = (ranges[0].start, ranges[-1].stop) == (0, self._count)
        return axis._replace(start=0 if whole else ranges[0].start, stop=None if whole else ranges[-1].stop)

    def _take_each(self, index: list[Any], axis: Axis) -> None:
        """One row of each sample, as `x[torch.arange(batch), last]`."""
        fits = (
            axis == Axis(1)
            and all(isinstance(i, Slot) and i in self._externals and self._externals[i].dim() == 1 for i in index[:2])
            and all(i == slice(None) for i in index[2:])
        )
        if not fits:
            raise NotInClosedFormError(
                "the output reads tokens by an index that is not known to be one for each sample"
            )
        samples, rows = (self._externals[i] for i in index[:2])
        if (
            rows.is_floating_point()
            or rows.dtype is torch.bool
            or not torch.equal(samples, torch.arange(len(samples)).to(samples))
        ):
            raise NotInClosedFormError("the output reads tokens by an index that is not one for each sample")
        if self._each is not None and not torch.equal(self._each, rows % self._count):
            raise NotInClosedFormError("the output reads several tokens of each sample")
        self._each = rows % self._count

    def _pick(self, rows: Iterable[int]) -> None:
        self._picks.update(row % self._count for row in rows)
        if len(self._picks) > MOST_ROWS:
            raise NotInClosedFormError("the output reads many tokens")

    # Repeating

    def run(self, given: dict[Slot, Tensor], rows: list[int] | Tensor | None, wanted: list[Slot]) -> list[Tensor]:
        """The values of some slots, computed for these rows only.

        Args:
            given: The tensors that the plan starts from, with these rows only.
            rows: Which rows; None: all there are.
            wanted: The slots.
        """
        values = dict(given)
        for operation in self._operations:
            self._repeat(operation, values, rows)
        return [values[slot] for slot in wanted]

    def _repeat(self, operation: Operation, values: dict[Slot, Tensor], rows: list[int] | Tensor | None) -> None:
        made = self.axes[operation.outputs[0]]
        read = next((s for s in operation.inputs if self.axes.get(s) is not None), None)
        out = self._recorder.shapes[operation.outputs[0]]

        def value(slot: Slot) -> Tensor:
            if slot in values:
                return values[slot]
            external = self._externals[slot]
            if rows is None or made is None or operation.name not in ELEMENTWISE:
                return external
            return self._with_rows(external, made, out, rows)

        with autocast_of(operation, self._recorder):
            if rows is None or read is None:
                args, kwargs = substituted((operation.args, operation.kwargs), value)
                result = repeated(operation, args, kwargs)
            elif operation.name in _RESHAPED and made is not None:
                shape = list(out)
                shape[made.axis] = made.outer * self._number(made, rows) * made.inner
                result = values[read].reshape(shape)
            elif operation.name in ("__getitem__", "select"):
                result = self._take(operation, values[read], read, rows, value)
            else:
                args, kwargs = substituted((operation.args, operation.kwargs), value)
                result = repeated(operation, args, kwargs)
        for slot, tensor in zip(operation.outputs, tensors_in(result), strict=True):
            values[slot] = tensor

    def _with_rows(self, external: Tensor, axis: Axis, out: torch.Size, rows: list[int] | Tensor) -> Tensor:
        place = axis.axis - len(out) + external.dim()
        if place < 0 or external.shape[place] == 1:
            return external
        if axis.outer != 1 or axis.inner != 1:
            raise NotInClosedFormError("tokens of several samples lie on one axis")
        if isinstance(rows, Tensor):
            if axis.stop is not None:
                raise NotInClosedFormError("tokens that differ between samples are taken apart")
            return rows_of(external, place, rows, len(out))
        here = self._range(axis)
        return rows_of(external, place, [row - axis.start for row in rows if row in here])

    def _number(self, axis: Axis, rows: list[int] | Tensor) -> int:
        """How many of the rows lie on an axis."""
        return 1 if isinstance(rows, Tensor) else sum(row in self._range(axis) for row in rows)

    def _take(self, operation: Operation, tensor: Tensor, read: Slot, rows: list[int] | Tensor, value: Any) -> Tensor:
        axis = self.axes[read]
        assert axis is not None  # noqa: S101
        if operation.name == "select":
            dim, index = operation.args[1] % tensor.dim(), operation.args[2]
            return tensor.select(dim, self._places(axis, index, rows)[0] if dim == axis.axis else index)
        index = _full_index(operation.args[1], tensor.dim())
        if any(isinstance(i, Slot) for i in index):
            return tensor[:, 0]
        source = 0
        for number, one in enumerate(index):
            if one is None:
                continue
            if source == axis.axis and one != slice(None):
                places = self._places(axis, one, rows)
                index[number] = (
                    places[0] if isinstance(one, int) else slice(places[0], places[-1] + 1) if places else slice(0)
                )
            source += 1
        return tensor[tuple(index)]

    def _places(self, axis: Axis, index: int | slice, rows: list[int] | Tensor) -> list[int]:
        """Where the rows that an index takes lie among those there are."""
        if isinstance(rows, Tensor):
            raise NotInClosedFormError("tokens that differ between samples are taken apart")
        here = self._range(axis)
        taken = here[index]
        present = [row for row in rows if row in here]
        return [place for place, row in enumerate(present) if row in (taken if isinstance(taken, range) else (taken,))]


def rows_of(tensor: Tensor, axis: int, rows: list[int] | Tensor, dims: int | None = None) -> Tensor:
    """Some rows of a tensor; if they differ between samples, its first axis is the batch (of `dims` axes)."""
    if isinstance(rows, Tensor):
        dims = tensor.dim() if dims is None else dims
        axis += dims - tensor.dim()
        tensor = tensor[(None,) * (dims - tensor.dim())].expand(len(rows), *[-1] * (dims - 1))
        index = rows.to(tensor.device).view(-1, *[1] * (dims - 1))
        return torch.take_along_dim(tensor, index, axis)
    return tensor.index_select(axis, torch.tensor(rows, dtype=torch.long, device=tensor.device))


def _normalized(operation: Operation, shape: torch.Size) -> Any:
    given = operation.kwargs.get("normalized_shape", operation.args[1] if len(operation.args) > 1 else shape)
    return given if isinstance(given, tuple | list) else (given,)


def _dims(operation: Operation, dims: int, default: int | None, position: int) -> list[int]:
    """The axes that a reduction goes over; none where it goes over all."""
    given = operation.kwargs.get("dim", operation.args[position] if len(operation.args) > position else default)
    if given is None or isinstance(given, float):
        return []
    return [one % dims for one in (given if isinstance(given, tuple | list) else (given,))]


def _reshaped(axis: Axis, shape: torch.Size, out: torch.Size, count: int) -> Axis:
    before = math.prod(shape[: axis.axis]) * axis.outer
    after = math.prod(shape[axis.axis + 1 :]) * axis.inner
    for place in range(len(out)):
        left, right = math.prod(out[:place]), math.prod(out[place + 1 :])
        if (
            left
            and right
            and before % left == 0
            and after % right == 0
            and (before // left) * count * (after // right) == out[place]
        ):
            return Axis(place, before // left, after // right)
    raise NotInClosedFormError("a reshaping takes tokens apart")


def _full_index(index: Any, dims: int) -> list[Any]:
    """An index with one entry for each axis."""
    index = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(i, int | slice | Slot | type(None) | type(...)) or isinstance(i, bool) for i in index):
        raise NotInClosedFormError("the output reads tokens by an index of another kind")
    given = sum(i is not None and i is not ... for i in index)
    rest = [slice(None)] * (dims - given)
    if ... in index:
        place = next(n for n, i in enumerate(index) if i is ...)
        return [*index[:place], *rest, *index[place + 1 :]]
    return [*index, *rest]
