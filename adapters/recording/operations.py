"""One recorded call of a torch function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Replacement = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What runs in an operation's place, given the function and its arguments."""


class Slot(int):
    """The number of a tensor in a recording; stands for it in an operation's arguments."""


@dataclass(slots=True, eq=False)
class Operation:
    """One call of a torch function.

    Attributes:
        index: Its place in time.
        call: The same, counting all of torch's functions that the model's code calls.
        name: The function's name.
        func: The function.
        args: Its arguments, tensors replaced by their slots.
        kwargs: Its keyword arguments, tensors replaced by their slots.
        inputs: The slots in them.
        outputs: The slots of the tensors it returned or changed.
        differentiable: Did the model's code allow gradients here?
        autocast: The type to which the model's own autocast rounds here, or None.
        mutated: The slot it changed in place, or None.
        before: What that held before, as long as it may be needed.
        unseen: Was the tensor made by something that cannot be seen (TorchScript, a torch.autograd.Function)?
        returned_a_value: Did it return a number to the model's code, which may decide by it?
        changes_view: Did it change a view of another tensor?
        constants: The tensors it read that depend on no input, as long as they may be needed.
        edge: Where the graph has its output, if it is an attention or a softmax and the graph is kept.
        weights: That output, if it is a softmax.
    """

    index: int
    call: int
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...] = ()
    differentiable: bool = True
    autocast: torch.dtype | None = None
    mutated: Slot | None = None
    before: Tensor | None = None
    unseen: bool = False
    returned_a_value: bool = False
    changes_view: bool = False
    constants: tuple[Tensor, ...] = ()
    edge: GradientEdge | None = None
    weights: Tensor | None = None

    def forget(self) -> None:
        """Let go of the tensors that were kept for it."""
        self.before = None
        self.edge = self.weights = None
        self.constants = ()


class NotInClosedFormError(Exception):
    """The model, or this call of it, does not allow the closed form; says why."""
