"""pytorch-grad-cam's explanation methods, with target layers and reshape transforms found in the model."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from adapters import CAStream, reshape_transform_for, target_layer_for
from adapters.wrappers.cnn_anatomy import cnn_anatomy

from ._adapted_cams import ADAPTED, Transform, class_named
from ._method import Row, Table

OF_MANY_PASSES = ("sess", "scorecam", "ablationcam")  # beside which the search for a layer costs nothing
_DEPTH = 4  # layers of methods that read several


@dataclass(frozen=True)
class Cam:
    """A class of pytorch-grad-cam; its target layer and transform are inferred from the model unless they are given."""

    name: str

    def __post_init__(self) -> None:
        taken = inspect.signature(class_named(self.name)).parameters.values()
        optional = [one.replace(default=None) if one.name == "target_layers" else one for one in taken]
        vars(self)["__signature__"] = inspect.Signature(optional)  # by which `explain_func` tells its options

    def __call__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module] | None = None,
        reshape_transform: Transform = None,
        **options: Any,
    ) -> Any:
        transform = reshape_transform or _remembered(_transforms, model, _transform)
        if self.name == "FullGrad":
            target_layers = []
        elif not target_layers:
            find = _feature_maps if transform is None else _tokens
            names, found = _remembered(_layers, model, find)
            used = names if self.name == "RefineCAM" else names[-1:]
            transform, target_layers = reshape_transform or found, [model.get_submodule(name) for name in used]
        make = ADAPTED.get(self.name) or class_named(self.name)
        return make(model, target_layers, reshape_transform=transform, **options)


T = TypeVar("T")
_Kept = WeakKeyDictionary[nn.Module, T]
_transforms: _Kept[Transform] = WeakKeyDictionary()  # as finding them takes passes
_layers: _Kept[tuple[list[str], Transform]] = WeakKeyDictionary()


def _remembered(found: _Kept[T], model: nn.Module, find: Callable[[nn.Module], T]) -> T:
    """What was found before, by the model's first part: explanations get stand-ins for it, which share its parts."""
    part = next(model.children(), model)
    if part not in found:
        found[part] = find(model)
    return found[part]


def _transform(model: nn.Module) -> Transform:
    """That of a transformer; None for a convolutional network."""
    try:
        return reshape_transform_for(model)
    except ValueError:
        return None


def _tokens(model: nn.Module) -> tuple[list[str], Transform]:
    """The layers of a transformer's tokens, the last of which is the one to read, and their transform."""
    try:
        layer = target_layer_for(model)
    except ValueError:
        return _feature_maps(model)
    last = next(name for name, module in model.named_modules() if module is layer)
    pattern = re.compile(r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in last.split(".")))
    alike = [name for name, module in model.named_modules() if pattern.fullmatch(name) and type(module) is type(layer)]
    names = alike[: alike.index(last) + 1][-_DEPTH:]
    return names, _remembered(_transforms, model, _transform)


def _feature_maps(model: nn.Module) -> tuple[list[str], Transform]:
    """Layers of a convolutional network, the last of which it averages, and a transform if channels come last."""
    prefix = "backbone." if isinstance(model, CAStream) else ""  # it does not average what its network does
    try:
        stages = cnn_anatomy(model.backbone if isinstance(model, CAStream) else model).stages
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"No target layer is found in this {type(model).__name__} ({error}). Specify one: --option "
            "gradcam.target_layers=layer4"
        ) from error
    last = stages[-1]
    names = [prefix + stage.name for stage in stages if stage.channels_last == last.channels_last]
    return names[-_DEPTH:], methodcaller("movedim", -1, 1) if last.channels_last else None


CAMS: Table = {
    "pytorch-grad-cam: weighted by gradients": {
        "gradcam": Row(Cam("GradCAM"), "GradCAM", "channels weighted by their mean gradients", "3"),
        "gradcam++": Row(
            Cam("GradCAMPlusPlus"), "GradCAMPlusPlus", "channels weighted by positive gradients of higher orders", "3"
        ),
        "xgradcam": Row(Cam("XGradCAM"), "XGradCAM", "channels weighted by gradients times activations", "3"),
        "hirescam": Row(Cam("HiResCAM"), "HiResCAM", "gradients times activations, place by place", "3"),
        "gradcamelementwise": Row(
            Cam("GradCAMElementWise"), "GradCAMElementWise", "as HiResCAM, of each channel its positive part", "3"
        ),
        "layercam": Row(Cam("LayerCAM"), "LayerCAM", "positive gradients times activations, place by place", "3"),
        "eigengradcam": Row(
            Cam("EigenGradCAM"), "EigenGradCAM", "first principal component of gradients times activations", "3"
        ),
        "segeigencam": Row(
            Cam("SegEigenCAM"), "SegEigenCAM", "first principal component of absolute gradients times activations", "3"
        ),
        "shapleycam": Row(Cam("ShapleyCAM"), "ShapleyCAM", "GradCAM with a term of second order; no transformers", "2"),
        "finercam": Row(Cam("FinerCAM"), "FinerCAM", "Grad-CAM of the class against the three most alike", "3"),
        "fullgrad": Row(Cam("FullGrad"), "FullGrad", "gradients times pixels and all biases; no transformers", "3"),
        "refinecam": Row(
            Cam("RefineCAM"),
            "RefineCAM",
            "product of Grad-CAM++ at the last four stages or blocks",
            "3 x layers (4): 12",
        ),
        "sess": Row(Cam("SESS"), "SESS", "Grad-CAM of windows of 12 enlarged copies, averaged", "4 x windows: 480"),
    },
    "pytorch-grad-cam: without gradients": {
        "scorecam": Row(
            Cam("ScoreCAM"), "ScoreCAM", "channels weighted by the output of the image under them", "1 + channels: 513"
        ),
        "ablationcam": Row(
            Cam("AblationCAM"), "AblationCAM", "channels weighted by the change as each is set to 0", "by channels: 398"
        ),
        "eigencam": Row(
            Cam("EigenCAM"), "EigenCAM", "first principal component of activations; the same for all classes", "1"
        ),
        "kpca-cam": Row(Cam("KPCA_CAM"), "KPCA_CAM", "component by a sigmoid kernel; the same for all classes", "1"),
        "fem": Row(Cam("FEM"), "FEM", "channels weighted by their share of outliers; the same for all classes", "1"),
    },
    "Controls": {"randomcam": Row(Cam("RandomCAM"), "RandomCAM", "activations with random weights", "3")},
}
