"""Operations that pick parts of a tensor by numbers that were computed."""

from typing import Any

from .operations import Operation, Slot
from .recorder import Recorder

_BY_INDEX = frozenset(["gather", "index_select", "take_along_dim"])


def picks(operation: Operation) -> bool:
    """Does an operation pick parts of a tensor by numbers that were computed?"""
    return operation.name in _BY_INDEX or any(isinstance(x, Slot) for x in _indices(operation))


def picks_by_content(recorder: Recorder, operation: Operation) -> bool:
    """Does an operation pick places by one list of numbers that were computed from the inputs, as `topk` gives them?"""
    given = operation.args[1:] if operation.name in _BY_INDEX else _indices(operation)
    numbers = [x for x in (*given, *operation.kwargs.values()) if isinstance(x, Slot)]
    return picks(operation) and len(numbers) == 1 and recorder.follows[numbers[0]]


def _indices(operation: Operation) -> tuple[Any, ...]:
    if operation.name != "__getitem__":
        return ()
    index = operation.args[1]
    return index if isinstance(index, tuple) else (index,)
