"""Maps of one batch by an object of Captum or of pytorch-grad-cam."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.models import OutputChoice, output_tensor
from adapters.models.stand_in import stand_in

from ._outputs import is_list_of_samples, read
from ._probabilities import answers
from ._targets import Function, number_of

_NOTHING = re.compile("NoneType|does not require grad")  # what pytorch-grad-cam and torch say without a gradient


@dataclass(frozen=True)
class Asked:
    """What is explained of each sample of a batch: classes (batch,), or functions of one sample's output."""

    classes: Tensor
    functions: Sequence[Function]
    output: OutputChoice

    def of(self, returned: Any, inputs: Tensor) -> Any:
        """The outputs for which the targets are meant; a single logit answers for both of its classes."""
        if self.functions and self.output is None and is_list_of_samples(returned):
            return returned
        found = output_tensor(returned, self.output, inputs)
        if self.functions or found.dim() > 2 or (found.dim() > 0 and found[:1].numel() != 1):
            return found
        return answers(read(found, inputs), None)

    def module(self, model: nn.Module) -> nn.Module:
        """The model as one that returns these outputs."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            return self.of(model(*args, **kwargs), given)

        return stand_in(model, {model: forward})

    def table(self, model: nn.Module) -> nn.Module:
        """The model as one that returns what each function makes of each sample: (batch, functions)."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            given = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            outputs = self.of(model(*args, **kwargs), given)
            return torch.stack([torch.stack([number_of(one, output) for one in self.functions]) for output in outputs])

        return stand_in(model, {model: forward})

    def each(self) -> list[Function]:
        """A function for each sample of the batch, as pytorch-grad-cam calls them."""
        if self.functions:
            return [_Number(self.functions[i]) for i in self.classes]
        return [_Class(int(i)) for i in self.classes]


class _Number:
    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, output: Any) -> Tensor:
        return number_of(self._function, output)


class _Class:
    """As pytorch-grad-cam's ClassifierOutputTarget, without importing it."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() != 1:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output)
            raise ValueError(
                f"Expected the model to return logits (batch, classes), but one sample's output is {got}. Pass "
                "functions of it in place of classes, as `lambda output: output[3].mean()`."
            )
        if not -len(output) <= self.category < len(output):
            raise ValueError(
                f"Expected targets from 0 to {len(output) - 1}, as the model has {len(output)} classes; got "
                f"{self.category}."
            )
        return output[self.category]


class Bound:
    """An explanation function and a model as an attribution with Captum's interface.

    A class, so that a copy explains the copy of the model.
    """

    def __init__(self, explain: Callable[..., Any], model: nn.Module) -> None:
        self.explain, self.forward_func = explain, model

    def attribute(self, inputs: Tensor, target: Any = None, additional_forward_args: Any = None) -> Tensor:
        """Maps (batch, channels, ...) of the inputs' size; models that need further arguments are not explained."""
        del additional_forward_args
        return torch.as_tensor(self.explain(self.forward_func, inputs, target))


def by_cam(explainer: Any, asked: Asked, x: Tensor, **options: Any) -> Tensor:
    """Maps of an object of pytorch-grad-cam, for inputs that require gradients, as a frozen backbone gives none.

    Raises:
        ValueError: if no gradient reaches the target layer.
    """
    pixels = x.clone().requires_grad_() if x.is_floating_point() else x.clone()
    with explainer as cam:
        try:
            return torch.as_tensor(cam(input_tensor=pixels, targets=asked.each(), **options))
        except Exception as error:  # an IndexError would be swallowed by the context
            problem, said = error, _no_gradient(cam) if _NOTHING.search(str(error)) else ""
    if said:
        raise ValueError(said) from problem
    raise problem


def _no_gradient(cam: Any) -> str:
    """What is wrong, if a target layer has no activation or no gradient."""
    held = getattr(cam, "activations_and_grads", None)
    found = len(getattr(held, "activations", cam.target_layers))
    if found < len(cam.target_layers):
        return (
            f"{found} of the {len(cam.target_layers)} target layers are run by this {type(cam.model).__name__}. Choose "
            "layers that its forward calls."
        )
    if cam.uses_gradients and len(getattr(held, "gradients", cam.target_layers)) < len(cam.target_layers):
        return (
            f"No gradient reaches a target layer of {type(cam).__name__}: the target does not depend on it, or it runs "
            "under torch.no_grad() or on a detached tensor. Choose a later layer, or run the model with gradients."
        )
    return ""


def as_images(model: nn.Module) -> nn.Module:
    """A model of signals as one of images (batch, channels, length, 1), which pytorch-grad-cam can resize."""

    def forward(signals: Any, *args: Any, **kwargs: Any) -> Any:
        return model(signals[..., 0] if signals.dim() == 4 else signals, *args, **kwargs)

    return stand_in(model, {model: forward})


def read_as_images(explainer: Any) -> None:
    """Let an object of pytorch-grad-cam see layers' signals as images (batch, channels, length, 1), too."""
    held = explainer.activations_and_grads
    arrange = held.reshape_transform

    def reshape(activation: Tensor) -> Tensor:
        arranged = activation if arrange is None else arrange(activation)
        return arranged[..., None] if arranged.dim() == 3 else arranged

    held.reshape_transform = explainer.reshape_transform = reshape
