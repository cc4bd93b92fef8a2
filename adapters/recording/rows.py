"""Repeating recorded operations for some rows of their tensors only, where that is known to change nothing else."""

from typing import Any

import torch
from torch import Tensor

from .call_arguments import full_index
from .continuation import autocast_of, repeated, substituted, tensors_in
from .operation_names import ELEMENTWISE
from .operations import NotInClosedFormError, Operation, Slot
from .row_axes import RESHAPED, Axis, RowAxes


class RowPlan(RowAxes):
    """How recorded operations are repeated for the rows that are picked; arguments and errors are those of RowAxes."""

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
            elif operation.name in RESHAPED and made is not None:
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
        here = self.rows_on(axis)
        return rows_of(external, place, [row - axis.start for row in rows if row in here])

    def _number(self, axis: Axis, rows: list[int] | Tensor) -> int:
        """How many of the rows lie on an axis."""
        return 1 if isinstance(rows, Tensor) else sum(row in self.rows_on(axis) for row in rows)

    def _take(self, operation: Operation, tensor: Tensor, read: Slot, rows: list[int] | Tensor, value: Any) -> Tensor:
        axis = self.axes[read]
        assert axis is not None  # noqa: S101
        if operation.name == "select":
            dim, index = operation.args[1] % tensor.dim(), operation.args[2]
            return tensor.select(dim, self._places(axis, index, rows)[0] if dim == axis.axis else index)
        index = full_index(operation.args[1], tensor.dim())
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
        here = self.rows_on(axis)
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
