"""Running a model again, with some of its operations replaced; they are known by their number in time."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .functions import in_parts
from .operation_names import name_of
from .operations import Operation, Replacement, Slot
from .saved_tensors import as_it_is, unchanged


class Repeat(TorchFunctionMode):
    """While active, some calls of torch's functions by this thread are answered otherwise.

    Args:
        replacements: From an operation's number among all calls to what runs in its place: it is given the function and
            its arguments.
    """

    def __init__(self, replacements: Mapping[int, Replacement]) -> None:
        super().__init__()
        self.calls = 0
        self.replaced = 0
        self._replacements = replacements

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.calls += 1
        if (parts := in_parts(func, args, kwargs)) is not None:
            with self:
                return parts(*args, **kwargs)
        replacement = self._replacements.get(self.calls)
        with saved_tensors_hooks(as_it_is, unchanged):  # and not those of a checkpoint, which would run it all again
            if replacement is None:
                return func(*args, **kwargs)
            self.replaced += 1
            return replacement(func, args, kwargs)


def with_tokens(operation: Operation, slot: Slot, tokens: Tensor) -> Replacement:
    """The operation reads other tokens in a slot's place."""

    def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name_of(func) != operation.name and not name_of(func).endswith("_as"):  # which are recorded as others
            raise ValueError(
                "The model does other things each time it is called with the same inputs, so that its tokens cannot be "
                "exchanged. Is something random in it?"
            )
        args, kwargs = _put((operation.args, operation.kwargs), (args, kwargs), slot, tokens)
        return func(*args, **kwargs)

    return run


def _put(recorded: Any, given: Any, slot: Slot, tokens: Tensor) -> Any:
    if isinstance(recorded, Slot):
        return tokens.clone() if recorded == slot else given
    if isinstance(recorded, tuple | list) and isinstance(given, tuple | list):
        items = [_put(x, y, slot, tokens) for x, y in zip(recorded, given, strict=True)]
        return type(given)(items) if type(given) in (tuple, list) else type(given)(*items)
    if isinstance(recorded, dict) and isinstance(given, dict):
        return {name: _put(value, given[name], slot, tokens) for name, value in recorded.items()}
    return given
