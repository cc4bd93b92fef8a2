"""Any Captum attribution or pytorch-grad-cam class as the explanation function that Quantus asks for."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.checks import positive_int
from adapters.models import OutputChoice, channels_first, evaluation_mode, placement_of

from ._explainers import Asked, Bound, as_images, by_cam, read_as_images
from ._targets import functions_in

Array = npt.NDArray[Any]
Channels = Literal["sum", "keep"]
_AXES = {3: ["length"], 4: ["height", "width"], 5: ["depth", "height", "width"]}


def explain_func(
    method: Callable[..., Any],
    *,
    batch_size: int = 16,
    channels: Channels = "sum",
    channel_first: bool | None = None,
    mode: str = "bilinear",
    output: OutputChoice = None,
    **options: Any,
) -> Callable[..., Array]:
    """A function `(model, inputs, targets, **kwargs) -> maps` for `quantus.evaluate` and every metric's `explain_func`.

    Maps of layers are resized to the images; options that the class does not accept are passed to its `attribute`.

    Args:
        method: A Captum attribution class (this project's too), a class of pytorch-grad-cam, or a function of the model
            that returns an instance of one, as `lambda model: NoiseTunnel(Saliency(model))`.
        batch_size: Samples per batch, at least 1.
        channels: "sum": maps have one channel, the sum; "keep": as many as the images, where the method has them.
        channel_first: False: the images have channels last; maps always have them first.
        mode: How maps of layers are resized, as in `torch.nn.functional.interpolate`; "bilinear" is linear for signals
            and trilinear for volumes.
        output: Which tensor to explain, where the model returns several: a name, an index, a tuple of them or a
            function of what it returns. None: by name, as `logits`.
        **options: Arguments of the class and of its `attribute`. `layer` and `target_layers` may be names of modules,
            as "blocks.11.norm1", or functions of the model: so they are looked up in each model that is explained,
            also in the copies that some metrics make.

    Returns:
        The function. It takes `model` (a torch.nn.Module), `inputs` (samples, ...) and `targets` (samples,), arrays or
        tensors, and returns an array (samples, 1 or channels, height, width), or (samples, tokens). Targets are
        classes, of a model with one logit 1 for the logit and 0 for minus the logit; or a function of one sample's
        output that returns a number, as for pytorch-grad-cam, or a list with one for each sample. Of further keyword
        arguments `batch_size` replaces the one above; the others, which `quantus.evaluate` passes from one method to
        the next, are ignored: each function keeps its own options. The model runs where its weights are, in
        evaluation mode; its training flags and gradients are restored afterwards.

    Raises:
        TypeError: if `method` is not callable.
        ValueError: if `batch_size` or `channels` is not one of the above; later, if a layer is not in the model.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient, LayerGradCam
        >>> from quantus_metrics import explain_func
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
        >>> methods = {"IxG": explain_func(InputXGradient), "Grad-CAM": explain_func(LayerGradCam, layer="0")}
        >>> {name: explain(model, torch.randn(2, 3, 8, 8), [1, 2]).shape for name, explain in methods.items()}
        {'IxG': (2, 1, 8, 8), 'Grad-CAM': (2, 1, 8, 8)}
    """
    if not callable(method):
        raise TypeError(f"Expected `method` to be an attribution class or a function of the model, got {type(method)}.")
    if channels not in ("sum", "keep"):
        raise ValueError(f"Expected `channels` to be 'sum' or 'keep', got {channels!r}.")
    return _Explain(method, positive_int("batch_size", batch_size), channels, channel_first, mode, output, options)


@dataclass(frozen=True, eq=False)
class _Explain:
    """The explanation function, a class so that it can be copied and pickled."""

    method: Callable[..., Any]
    batch_size: int
    channels: Channels
    channel_first: bool | None
    mode: str
    output: OutputChoice
    options: Mapping[str, Any]

    def __call__(self, model: nn.Module, inputs: Any, targets: Any, **kwargs: Any) -> Array:
        batch_size = positive_int("batch_size", kwargs.get("batch_size", self.batch_size))
        x = _as_tensor(model, inputs, self.channel_first)
        functions, classes = functions_in(targets, len(x))
        y = torch.as_tensor(classes).to(x.device, torch.long)
        if y.shape != x.shape[:1]:
            raise ValueError(f"Expected one target for each input: inputs {tuple(x.shape)}, targets {tuple(y.shape)}.")
        with _left_as_found(model):
            parts = [
                self._sized(self._maps(model, rows, Asked(asked, functions, self.output)).detach(), rows)
                for rows, asked in zip(x.split(batch_size), y.split(batch_size), strict=True)
            ]
        return np.concatenate(parts)

    def attribution(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Any, Tensor, Any, Mapping[str, Any]]:
        """The method as an attribution with Captum's interface, and the inputs, target and options of its `attribute`.

        This project's are what they are; others are wrapped, so that a copy explains its own copy of the model.
        """
        x = _as_tensor(model, inputs, self.channel_first)
        if "output" not in inspect.signature(self.method).parameters:
            return Bound(self, model), x, targets, {}
        functions, classes = functions_in(targets, len(x))
        asked = Asked(torch.as_tensor(classes).to(x.device, torch.long), functions, self.output)
        return self._ours(model, x, asked)

    def _ours(self, model: nn.Module, x: Tensor, asked: Asked) -> tuple[Any, Tensor, Any, Mapping[str, Any]]:
        """One of this project's attributions, which take functions as targets."""
        made, rest = self._options(model)
        of = self.output if asked.functions else partial(asked.of, inputs=x)
        return self.method(model, output=of, **made), x, asked.each() if asked.functions else asked.classes, rest

    def _options(self, model: nn.Module) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Those of the class, and those of its `attribute`."""
        accepted = inspect.signature(self.method).parameters
        made = {k: _found(model, k, v) for k, v in self.options.items() if k in accepted}
        return made, {k: v for k, v in self.options.items() if k not in accepted}

    def _maps(self, model: nn.Module, x: Tensor, asked: Asked) -> Tensor:
        pixels = x.clone().requires_grad_() if x.is_floating_point() else x  # or Captum warns as it does so itself
        if "output" in inspect.signature(self.method).parameters:
            ours, _, target, rest = self._ours(model, x, asked)
            return _only(ours.attribute(pixels, target=target, **rest))
        made, rest = self._options(model)
        explainer = self.method(asked.module(model), **made)
        if hasattr(explainer, "attribute"):
            if asked.functions:
                explainer = self.method(asked.table(model), **made)
            return _only(explainer.attribute(pixels, target=asked.classes, **rest))
        if not hasattr(explainer, "target_layers"):
            raise TypeError(
                f"Expected {self.method} to make an object with `attribute` (Captum) or `target_layers` "
                f"(pytorch-grad-cam), got {type(explainer)}."
            )
        if x.dim() != 3 or not hasattr(explainer.activations_and_grads, "reshape_transform"):
            return by_cam(explainer, asked, x, **rest)
        explainer = self.method(as_images(asked.module(model)), **made)
        read_as_images(explainer)
        return by_cam(explainer, asked, x[..., None], **rest)[..., 0]

    def _sized(self, maps: Tensor, x: Tensor) -> Array:
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if x.dim() > 2:
            maps = maps[:, None] if maps.shape[1:] == x.shape[2:] else maps
            if maps.dim() != x.dim():
                raise ValueError(
                    f"Expected maps (batch, channels, {', '.join(_AXES[x.dim()])}) from {self.method}, got "
                    f"{tuple(maps.shape)}. Scores of tokens are no image: use a method that arranges them, e.g. CDAM, "
                    "or write a function."
                )
            if self.channels == "sum" or maps.shape[1:] != x.shape[1:]:
                maps = maps.sum(1, keepdim=True)
            if maps.shape[2:] != x.shape[2:]:
                linear = {3: "linear", 4: "bilinear", 5: "trilinear"}
                mode = linear[x.dim()] if self.mode in linear.values() else self.mode
                maps = F.interpolate(maps, tuple(x.shape[2:]), mode=mode)
        elif maps.dim() == 3 and maps.shape[:2] == x.shape:
            maps = maps.sum(2)  # over the channels of embeddings
        result: Array = maps.cpu().numpy()
        return result


def _only(given: Any) -> Tensor:
    """The maps of the first input."""
    maps: Tensor = given[0] if isinstance(given, tuple) else given
    return maps


def _as_tensor(model: nn.Module, inputs: Any, channel_first: bool | None) -> Tensor:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected `model` to be a torch.nn.Module, got {type(model)}.")
    x = channels_first(
        inputs.detach() if isinstance(inputs, Tensor) else torch.as_tensor(np.array(inputs)), channel_first
    )
    x = x.float() if x.dim() > 2 and not x.is_floating_point() else x
    return placement_of(model).moved(x if x.is_floating_point() else x.long())


def _found(model: nn.Module, name: str, value: Any) -> Any:
    """An argument of a class, layers looked up in the model."""
    if name == "target_layers":
        return [_layer(model, one) for one in (value if isinstance(value, list | tuple) else [value])]
    return _layer(model, value) if name == "layer" and value is not None else value


def _layer(model: nn.Module, given: Any) -> nn.Module:
    if isinstance(given, str):
        try:
            return model.get_submodule(given)
        except AttributeError:
            near = [name for name, _ in model.named_modules() if name][-5:]
            raise ValueError(
                f"{type(model).__name__} has no module {given!r}. Its last ones are {', '.join(near)}."
            ) from None
    layer = given if isinstance(given, nn.Module) else given(model)
    if all(layer is not module for module in model.modules()):
        raise ValueError(
            f"The given {type(layer).__name__} is not a part of this {type(model).__name__}, which may be a copy of "
            "the model it was taken from. Pass its name, e.g. 'layer4.1', so that it is found in every copy."
        )
    return layer


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with train flags and gradients restored: pytorch-grad-cam changes both."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with evaluation_mode(model), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
