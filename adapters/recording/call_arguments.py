"""Reading axes and indices from the arguments of recorded calls."""

from typing import Any

import torch

from .operations import NotInClosedFormError, Operation, Slot


def joining_axis(operation: Operation) -> int:
    """Along which axis tensors are joined."""
    dim: int = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else 0)
    return dim


def normalized_shape(operation: Operation, shape: torch.Size) -> Any:
    """The axes over which a layer normalises."""
    given = operation.kwargs.get("normalized_shape", operation.args[1] if len(operation.args) > 1 else shape)
    return given if isinstance(given, tuple | list) else (given,)


def reduced_axes(operation: Operation, dims: int, default: int | None, position: int) -> list[int]:
    """The axes that a reduction goes over; none where it goes over all."""
    given = operation.kwargs.get("dim", operation.args[position] if len(operation.args) > position else default)
    if given is None or isinstance(given, float):
        return []
    return [one % dims for one in (given if isinstance(given, tuple | list) else (given,))]


def full_index(index: Any, dims: int) -> list[Any]:
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
