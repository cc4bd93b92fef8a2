"""The explanation methods that can be compared, by name."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from captum import attr
from torch import Tensor, nn

import captum_ext
from adapters import CAStream, reshape_transform_for, target_layer_for
from adapters.models import OutputChoice
from adapters.wrappers.cnn_anatomy import cnn_anatomy
from quantus_metrics import explain_func

from ._names import by_slug, from_entry_points, select, slug

GROUP = "xai_compare.methods"
Make = Callable[..., Any]
Explain = Callable[..., Any]


@dataclass(frozen=True)
class Method:
    """A method by its name.

    Attributes:
        make: A class of Captum or pytorch-grad-cam, or a function of the model that returns an object of one.
        source: Where it comes from, for the report.
        options: Default arguments of the class and of its `attribute`, which the user's options override.
        title: What the report calls it.
        needs_warm_up: Whether its first call on a model may do work that later calls reuse.
    """

    make: Make
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    needs_warm_up: bool = True

    def explain(self, options: Mapping[str, Any], batch_size: int, output: OutputChoice = None) -> Explain:
        """A function `(model, inputs, targets)` that returns maps of the inputs' size, one channel."""
        given: dict[str, Any] = {"batch_size": batch_size, "output": output, "channel_first": True}
        return explain_func(self.make, **(given | dict(self.options) | dict(options)))


def methods() -> dict[str, Method]:
    """All methods: this project's, Captum's, pytorch-grad-cam's if it is installed, and those of entry points."""
    known = {name: Method(cls, f"captum_ext.{cls.__name__}", title=title) for name, (cls, title) in _OURS.items()}
    for name, (make, title, options) in _CAPTUM.items():
        known[name] = Method(make, f"captum.attr: {title}", options, title, needs_warm_up=False)
    known |= _grad_cams()
    known["random"] = Method(_Random, "normal noise, a control", title="random")
    made = {name: method.make for name, method in known.items()}
    known |= {name: Method(make, _named(make), title=name) for name, make in from_entry_points(GROUP, made).items()}
    return known


def methods_named(wanted: Any) -> dict[str, Method]:
    """The requested methods.

    Args:
        wanted: Names; or a mapping from the user's names to method names, classes or functions of the model.

    Raises:
        TypeError: if a value is neither a name nor callable.
        ValueError: if a name is unknown, or two are the same once normalised.

    Example:
        >>> from xai_compare import methods_named
        >>> list(methods_named(["CDAM", "mine=ig"]))
        ['cdam', 'mine']
    """
    known = methods()
    if not isinstance(wanted, Mapping):
        return select("method", wanted, known)
    found = {}
    by_slug(wanted)
    for name, value in wanted.items():
        if isinstance(value, str):
            (found[slug(name)],) = select("method", [value], known).values()
        elif callable(value):
            found[slug(name)] = Method(value, _named(value), title=name)
        else:
            raise TypeError(f"Expected method {name!r} to be a name, a class or a function, got {type(value)}.")
    return found


_OURS = {
    "cdam": (captum_ext.CDAM, "CDAM"),
    "smooth-cdam": (captum_ext.SmoothCDAM, "Smooth CDAM"),
    "integrated-cdam": (captum_ext.IntegratedCDAM, "Integrated CDAM"),
    "attention": (captum_ext.AttentionMap, "Attention map"),
    "rollout": (captum_ext.AttentionRollout, "Attention rollout"),
    "relevance": (captum_ext.RelevancePropagation, "Relevance propagation"),
    "partial-lrp": (captum_ext.PartialLRP, "Partial LRP"),
    "raw-attention": (captum_ext.RawAttention, "RawAttention"),
    "mhex-cam": (captum_ext.MHEXCAM, "MHEXCAM"),
}


def _smooth_grad(model: nn.Module) -> Any:
    return attr.NoiseTunnel(attr.Saliency(model))


def _patch(x: Tensor) -> tuple[int, ...]:
    """A square (of signals a stretch, of volumes a cube) of an eighth of the shortest side, in all channels."""
    side = max(1, min(x.shape[2:]) // 8)
    return x.shape[1], *[side] * (x.dim() - 2)


class _Patchwise:
    """Occlusion by squares; single pixels would take a forward pass each."""

    def __init__(self, model: nn.Module) -> None:
        self._method = attr.Occlusion(model)

    def attribute(self, inputs: Tensor, target: Tensor, **options: Any) -> Any:
        window = options.pop("sliding_window_shapes", _patch(inputs))
        strides = options.pop("strides", window)
        return self._method.attribute(inputs, window, strides=strides, target=target, **options)


class _Random:
    """Noise, as a control."""

    def __init__(self, model: nn.Module) -> None:
        del model

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        return torch.randn(len(inputs), 1, *inputs.shape[2:], device=inputs.device)


_CAPTUM: dict[str, tuple[Make, str, dict[str, Any]]] = {
    "ig": (attr.IntegratedGradients, "Integrated Gradients", {"internal_batch_size": 64}),
    "ixg": (attr.InputXGradient, "Input x Gradient", {}),
    "saliency": (attr.Saliency, "Saliency", {}),
    "smoothgrad": (
        _smooth_grad,
        "SmoothGrad",
        {"nt_samples": 50, "nt_samples_batch_size": 4, "stdevs": 0.1, "abs": False},
    ),
    "guided-backprop": (attr.GuidedBackprop, "Guided Backprop", {}),
    "deconvolution": (attr.Deconvolution, "Deconvolution", {}),
    "deep-lift": (attr.DeepLift, "DeepLIFT", {}),
    "occlusion": (_Patchwise, "Occlusion", {}),
}


_CAMS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
}


def _grad_cams() -> dict[str, Method]:
    try:
        importlib.import_module("pytorch_grad_cam")
    except ModuleNotFoundError:
        return {}
    return {name: Method(_Cam(cls), f"pytorch_grad_cam.{cls}", title=cls) for name, cls in _CAMS.items()}


@dataclass(frozen=True)
class _Cam:
    """A class of pytorch-grad-cam; its target layer is inferred from the model unless it is given."""

    name: str

    def __call__(self, model: nn.Module, target_layers: list[nn.Module] | None = None) -> Any:
        cls = getattr(importlib.import_module("pytorch_grad_cam"), self.name)
        transform = _remembered(_transforms, model, _transform)
        if target_layers:
            return cls(model, target_layers, reshape_transform=transform)
        find = _feature_map if transform is None else _tokens
        name, transform = _remembered(_layers, model, find)
        return cls(model, [model.get_submodule(name)], reshape_transform=transform)


T = TypeVar("T")
_Transform = Callable[..., Any] | None
_Kept = WeakKeyDictionary[nn.Module, T]
_transforms: _Kept[_Transform] = WeakKeyDictionary()  # as finding them takes passes
_layers: _Kept[tuple[str, _Transform]] = WeakKeyDictionary()


def _remembered(found: _Kept[T], model: nn.Module, find: Callable[[nn.Module], T]) -> T:
    """What was found before, by the model's first part: explanations get stand-ins for it, which share its parts."""
    part = next(model.children(), model)
    if part not in found:
        found[part] = find(model)
    return found[part]


def _transform(model: nn.Module) -> _Transform:
    """That of a transformer; None for a convolutional network."""
    try:
        return reshape_transform_for(model)
    except ValueError:
        return None


def _tokens(model: nn.Module) -> tuple[str, _Transform]:
    """The layer of a transformer's tokens, and their transform."""
    try:
        layer = target_layer_for(model)
    except ValueError:
        return _feature_map(model)
    return next(name for name, module in model.named_modules() if module is layer), _remembered(
        _transforms, model, _transform
    )


def _feature_map(model: nn.Module) -> tuple[str, _Transform]:
    """The layer whose feature map a convolutional network averages, and the transform of a map with channels last."""
    prefix = "backbone." if isinstance(model, CAStream) else ""  # it does not average what its network does
    try:
        last = cnn_anatomy(model.backbone if isinstance(model, CAStream) else model).stages[-1]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"No target layer is found in this {type(model).__name__} ({error}). Specify one: --option "
            "gradcam.target_layers=layer4"
        ) from error
    return prefix + last.name, methodcaller("movedim", -1, 1) if last.channels_last else None


def _named(value: Any) -> str:
    return (
        f"{getattr(value, '__module__', type(value).__module__)}.{getattr(value, '__qualname__', type(value).__name__)}"
    )
