"""Running a model again from the beginning, with other tokens where its last attention reads them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .recorder import Operation, Slot, in_parts


class Exchange(TorchFunctionMode):
    """While active, some operations of this thread read other tokens; they are known by their number in time.

    Args:
        slot: The slot of the tokens in the recording.
        operations: The operations in which they are exchanged.
        tokens: What these read instead.
    """

    def __init__(self, slot: Slot, operations: frozenset[Operation], tokens: Tensor) -> None:
        super().__init__()
        self.calls = 0
        self.exchanged = 0
        self._slot = slot
        self._operations = {operation.call: operation for operation in operations}
        self._tokens = tokens

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if (parts := in_parts(func, args, kwargs)) is not None:
            with self:
                return parts(*args, **kwargs)
        operation = self._operations.get(self.calls)
        if operation is not None:
            self.exchanged += 1
            args, kwargs = self._put(((operation.args, operation.kwargs)), (args, dict(kwargs)))
        return func(*args, **kwargs)

    def _put(self, recorded: Any, given: Any) -> Any:
        if isinstance(recorded, Slot):
            return self._tokens.clone() if recorded == self._slot else given
        if isinstance(recorded, tuple | list):
            items = [self._put(x, y) for x, y in zip(recorded, given, strict=True)]
            return type(given)(items) if type(given) in (tuple, list) else type(given)(*items)
        if isinstance(recorded, dict):
            return {name: self._put(value, given[name]) for name, value in recorded.items()}
        return given
