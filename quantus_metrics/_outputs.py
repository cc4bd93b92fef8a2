"""What a model returns, as the scores and explanations read it."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adapters.models import OutputChoice, evaluation_mode, modules_of, only_tensor, output_tensor
from adapters.models.hooks import watch_outputs

from ._probabilities import Activation, probabilities

Model = Callable[..., Any]
_LAST = (nn.Softmax, nn.Sigmoid)


def is_list_of_samples(returned: Any) -> bool:
    """Did the model return a list with a dictionary for each sample, as detectors do?"""
    return isinstance(returned, list | tuple) and all(isinstance(one, Mapping) for one in returned) and bool(returned)


def read(returned: Any, inputs: Tensor, choice: OutputChoice = None) -> Tensor:
    """The outputs (batch, ...) in what a model returned; those of one value as (batch, 1).

    The axis of the batch, which `squeeze` takes from a batch of one, is put back.
    """
    found = only_tensor(returned, inputs) if choice is None else output_tensor(returned, choice, inputs)
    if found.dim() == 0 or (found.dim() == 1 and len(inputs) == 1 and len(found) > 1):
        found = found[None]
    return found[:, None] if found.dim() == 1 else found


@dataclass(frozen=True)
class Returned:
    """What a model returned in one call.

    Attributes:
        value: As it returned it.
        inputs: What it was given.
        last: The module that made the output, if that is an `nn.Softmax` or `nn.Sigmoid`, else None.
        before: What that module was given.
    """

    value: Any
    inputs: Tensor
    last: nn.Module | None = None
    before: Tensor | None = None

    def outputs(self, *, final: bool) -> Tensor:
        """The outputs (batch, ...): the final ones, or before a softmax or sigmoid at the end."""
        return read(self.value if final or self.before is None else self.before, self.inputs)

    def of_classes(self, *, final: bool) -> Tensor:
        """The same, for models that return (batch, classes).

        Raises:
            ValueError: if the shape is another.
        """
        found = self.outputs(final=final)
        if found.dim() != 2 or len(found) != len(self.inputs):
            raise ValueError(
                f"Expected the model to return logits ({len(self.inputs)}, classes), got {tuple(found.shape)}. To "
                "explain an output of another shape, pass functions of one sample's output in place of classes, e.g. "
                "`lambda output: output[3].mean()`."
            )
        return found.to(torch.promote_types(found.dtype, torch.float32))


def is_of_final(activation: Activation | None) -> bool:
    """Is an activation applied to what the model returns, not to logits?"""
    return callable(activation) or activation == "identity"


def samples_in(returned: Returned, activation: Activation | None) -> Any:
    """What functions are given, by sample: logits, probabilities where an activation is wanted, or a dictionary."""
    if is_list_of_samples(returned.value):
        return returned.value
    outputs = returned.outputs(final=is_of_final(activation))
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs if activation is None else probabilities(outputs, activation)


class _Run:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._held: list[tuple[nn.Module, Tensor, weakref.ref[Tensor]]] = []

    def __call__(self, inputs: Tensor, **options: Any) -> Returned:
        value = self._model(inputs, **options)
        if self._held and not is_list_of_samples(value):
            module, before, output = self._held.pop()
            if output() is only_tensor(value, inputs):
                return Returned(value, inputs, module, before)
        return Returned(value, inputs)

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Remember the last call of these modules, no longer than its output lives."""
        if args and isinstance(output, Tensor):
            held = self._held
            held[:] = [(module, args[0], weakref.ref(output, lambda _: held.clear()))]


class _Sigmoids(TorchFunctionMode):
    """Remembers what the last sigmoid made, whichever way it was called."""

    last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("sigmoid", "sigmoid_", "expit", "special_expit"):
            self.last = found
        return found


def ends_in_sigmoid(run: Callable[[], Returned]) -> bool:
    """Does a model that is run return, but for its shape, what a sigmoid made?"""
    with _Sigmoids() as seen:
        found = run().outputs(final=True)
    last = seen.last
    return last is not None and last.data_ptr() == found.data_ptr() and last.numel() == found.numel()


@contextmanager
def running(model: Model) -> Iterator[Callable[..., Returned]]:
    """The model in evaluation mode, without gradients, as a function of inputs on its device, and further options."""
    run = _Run(model)
    modules = modules_of(model if isinstance(model, nn.Module) else None)
    watched = watch_outputs([module for module in modules if isinstance(module, _LAST)], run.note)
    with watched, evaluation_mode(model), torch.no_grad():
        yield run
