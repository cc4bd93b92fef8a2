"""Which axis of each tensor holds the rows of an attention's output, through recorded operations.

A row is what belongs to one token. Most operations of a transformer treat each row alone: linear layers, norms,
activations, additions. `RowAxes` follows the axis of the rows through such operations and notes which rows are picked.
An operation that is not known to keep rows apart ends that: then all rows are needed.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .call_arguments import full_index, joining_axis, normalized_shape, reduced_axes
from .continuation import substituted, tensors_in
from .operation_names import ELEMENTWISE, MOVED_AXES, PARTS
from .operations import NotInClosedFormError, Operation, Slot
from .recorder import Recorder


def most_rows(count: int) -> int:
    """How many of some rows may be picked, so that treating each alone is less work than treating all together."""
    return max(8, count // 4)


RESHAPED = frozenset(["view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "ravel"])
_REDUCED = frozenset(["mean", "sum", "var", "std", "norm", "vector_norm", "amax", "amin"])


class Axis(NamedTuple):
    """The axis on which rows lie; of one that holds more, how many before and after each block of rows.

    Of a part of the rows, `start` and `stop` are the first one and the one behind the last; None: there are all.
    """

    axis: int
    outer: int = 1
    inner: int = 1
    start: int = 0
    stop: int | None = None


_Rule = Callable[..., Axis | None]


class RowAxes:
    """The axis of the rows in each tensor on the way.

    Args:
        recorder: The recording.
        operations: The operations, in order.
        start: The axis of the rows in each tensor that is given; None where it has none.
        count: How many rows there are.
        externals: The other tensors that the operations read.

    Attributes:
        axes: The axis of the rows in each tensor; None where it has none.

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
        """The rows that are picked: numbers, or one tensor with a number for each sample; None: no rows are."""
        if self._each is not None:
            if self._picks:
                raise NotInClosedFormError("the output reads rows that differ between samples, and others")
            return self._each
        return sorted(self._picks) if self._picks else None

    def settle(self, slot: Slot) -> None:
        """A part of the rows counts as picked."""
        axis = self.axes.get(slot)
        if axis is not None and axis.stop is not None:
            self._pick(range(axis.start, axis.stop))

    def rows_on(self, axis: Axis) -> range:
        """The rows that lie on an axis."""
        return range(axis.start, self._count if axis.stop is None else axis.stop)

    def _follow(self, operation: Operation) -> None:
        if operation.mutated is not None and operation.mutated not in self.axes:
            raise NotInClosedFormError(f"`{operation.name}` changes a tensor in place")
        with_rows = [slot for slot in operation.inputs if self.axes.get(slot) is not None]
        if not with_rows:
            self.axes |= dict.fromkeys(operation.outputs)
            return
        try:
            axis: Axis | None = self._axis_of(operation, with_rows)
        except NotInClosedFormError:
            parts = [self.axes[slot] for slot in with_rows]
            if any(part is None or part.stop is None for part in parts):
                raise
            for slot in with_rows:  # a few rows were picked, which here come together
                self.settle(slot)
            axis = None
        self.axes |= dict.fromkeys(operation.outputs, axis)

    def _axis_of(self, operation: Operation, with_rows: list[Slot]) -> Axis | None:
        rule = self._rules.get(operation.name)
        axis = self.axes[with_rows[0]]
        if rule is None or axis is None:
            raise _unknown(operation)
        return rule(self, operation, with_rows, axis)

    def _shape(self, slot: Slot) -> torch.Size:
        return self._recorder.shapes[slot]

    # Rules: where the axis is in what an operation returns

    def _layer(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        shape = self._shape(with_rows[0])
        last = len(shape) - (1 if operation.name == "linear" else len(normalized_shape(operation, shape)))
        return _kept(operation, axis, axis.axis < last and len(with_rows) == 1)

    def _addmm(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        return _kept(operation, axis, with_rows == [operation.args[1]] and axis.axis == 0)

    def _product(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        """With a matrix that does not depend on the rows."""
        other = operation.args[1]
        matrix = isinstance(other, Slot) and other not in self.axes and len(self._shape(other)) == 2
        alone = [operation.args[0]] == with_rows and axis.axis < len(self._shape(with_rows[0])) - 1
        return _kept(operation, axis, matrix and alone)

    def _normalize(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        return _kept(operation, axis, axis.axis not in reduced_axes(operation, len(self._shape(with_rows[0])), 1, 2))

    def _reduced(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        shape = self._shape(with_rows[0])
        dims = reduced_axes(operation, len(shape), None, 1)
        _kept(operation, axis, bool(dims) and axis.axis not in dims)
        if len(self._shape(operation.outputs[0])) == len(shape):
            return axis
        return axis._replace(axis=axis.axis - sum(dim < axis.axis for dim in dims))

    def _reshape(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        shape, out = self._shape(with_rows[0]), self._shape(operation.outputs[0])
        return _reshaped(axis, shape, out, len(self.rows_on(axis)))._replace(start=axis.start, stop=axis.stop)

    def _cat(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        _kept(operation, axis, len(with_rows) == len(operation.inputs))
        axes = [one for slot in operation.inputs if (one := self.axes[slot]) is not None]
        if joining_axis(operation) % len(self._shape(with_rows[0])) == axis.axis:
            return self._joined(axis, axes)
        return _kept(operation, axis, len(set(axes)) == 1)

    def _stack(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        _kept(operation, axis, len({self.axes.get(one) for one in operation.inputs}) == 1)
        dim = joining_axis(operation) % (len(self._shape(with_rows[0])) + 1)
        return axis._replace(axis=axis.axis + (dim <= axis.axis))

    def _select(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis | None:
        dim, index = operation.args[1] % len(self._shape(with_rows[0])), operation.args[2]
        if dim == axis.axis:
            self._pick([self.rows_on(axis)[index]])
            return None
        return axis._replace(axis=axis.axis - (dim < axis.axis))

    def _aligned(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        """The common axis, counted from the right as in broadcasting."""
        dims = len(self._shape(operation.outputs[0]))
        found = set()
        for slot in with_rows:
            one = self.axes[slot] or axis
            found.add(one._replace(axis=one.axis - len(self._shape(slot)) + dims))
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

    def _viewed(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis:
        """Told by the strides of a view of an empty tensor."""
        shape = self._shape(with_rows[0])
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

    def _taken(self, operation: Operation, with_rows: list[Slot], axis: Axis) -> Axis | None:
        """An index: of other axes it may only move the rows' one, of the rows it picks."""
        index = full_index(operation.args[1], len(self._shape(with_rows[0])))
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
                kept = self.rows_on(axis)[one]
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

    def _joined(self, axis: Axis, parts: list[Axis]) -> Axis:
        """Parts of the rows put together again."""
        ranges = [self.rows_on(part) for part in parts]
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
        if len(self._picks) > most_rows(self._count):
            raise NotInClosedFormError("the output reads many tokens")

    _rules: ClassVar[dict[str, _Rule]] = {
        **dict.fromkeys(ELEMENTWISE, _aligned),
        **dict.fromkeys(["linear", "layer_norm", "rms_norm"], _layer),
        **dict.fromkeys(["matmul", "__matmul__"], _product),
        **dict.fromkeys(_REDUCED, _reduced),
        **dict.fromkeys(RESHAPED, _reshape),
        **dict.fromkeys(MOVED_AXES | PARTS, _viewed),
        "addmm": _addmm,
        "normalize": _normalize,
        "cat": _cat,
        "stack": _stack,
        "__getitem__": _taken,
        "select": _select,
    }


def _unknown(operation: Operation) -> NotInClosedFormError:
    return NotInClosedFormError(
        f"`{operation.name}` is not known to keep tokens apart, so the output may read all of them"
    )


def _kept(operation: Operation, axis: Axis, fits: bool) -> Axis:
    if not fits:
        raise _unknown(operation)
    return axis


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
