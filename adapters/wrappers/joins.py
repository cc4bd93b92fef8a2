"""Where a network joins two branches: by adding them, or by concatenating their channels."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ADDITIONS = (torch.add, Tensor.add, Tensor.add_)
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
OF_MAPS = (3, 4, 5)  # axes of tokens, signals, images and volumes
_CHANNELS = 1


@dataclass(frozen=True)
class Join:
    """Two tensors that are joined.

    Attributes:
        first: One branch.
        second: The other one.
        kind: "add_" writes the sum over the first; "cat" concatenates along the second axis.
    """

    first: Tensor
    second: Tensor
    kind: Literal["add", "add_", "cat"]

    @property
    def terms(self) -> tuple[Tensor, Tensor]:
        """Both branches."""
        return self.first, self.second

    @property
    def in_place(self) -> bool:
        """Is the sum written over the first branch?"""
        return self.kind == "add_"


Answer = Callable[[Join], Tensor | None]


class WatchJoins(TorchFunctionMode):
    """Inside, each sum of two tensors of one shape, and each concatenation of two maps, is shown to `answer`.

    `answer` may replace it by what it returns, and of a sum in place must write this over the first tensor itself. Acts
    on this thread only.

    Args:
        answer: As above.
        axes: How many axes the tensors may have.
    """

    def __init__(self, answer: Answer, axes: Collection[int] = OF_MAPS) -> None:
        super().__init__()
        self._answer, self._axes = answer, axes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        join = join_of(func, args, kwargs or {}, self._axes)
        answer = None if join is None else self._answer(join)
        return func(*args, **(kwargs or {})) if answer is None else answer


def join_of(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Collection[int]
) -> Join | None:
    """What a call of torch joins; None: it is no sum of two such tensors, and no concatenation of their channels."""
    if func in _ADDITIONS and len(args) == 2 and not kwargs:
        first, second = args
        if _are_maps(args, axes) and first.shape == second.shape:
            return Join(first, second, "add_" if func is Tensor.add_ else "add")
    if func in _CONCATENATIONS:
        parts = args[0] if args else kwargs.get("tensors")
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        if isinstance(parts, list | tuple) and len(parts) == 2 and _are_maps(parts, axes):
            first, second = parts
            if axis in (_CHANNELS, _CHANNELS - first.dim()) and first.shape[2:] == second.shape[2:]:
                return Join(first, second, "cat")
    return None


def _are_maps(given: Collection[Any], axes: Collection[int]) -> bool:
    return all(isinstance(one, Tensor) and one.dim() in axes and one.is_floating_point() for one in given)
