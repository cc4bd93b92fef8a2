"""Classes of pytorch-grad-cam that do not take what GradCAM takes, made so that they do, or say why not."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

Transform = Callable[..., Any] | None
Target = Callable[[Tensor], Tensor]


def class_named(name: str) -> Any:
    """A class of pytorch-grad-cam.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    return getattr(importlib.import_module("pytorch_grad_cam"), name)


class _Around:
    """An object of pytorch-grad-cam that holds CAMs of its layers, with targets as it needs them."""

    uses_gradients = True

    def __init__(self, cam: Any, layers: list[nn.Module], target: Callable[..., Target], held: Sequence[Any]) -> None:
        self._cam, self.target_layers, self._target, self._held = cam, layers, target, held
        self.activations_and_grads = held[0].activations_and_grads if len(held) == 1 else None

    def __call__(self, input_tensor: Tensor, targets: Sequence[Target], **options: Any) -> Any:
        """Maps (batch, height, width)."""
        if input_tensor.dim() != 4:
            raise ValueError(
                f"{type(self._cam).__name__} takes images, (batch, channels, height, width), got "
                f"{tuple(input_tensor.shape)}."
            )
        kept = {key: options.pop(key) for key in ("alpha", "comparison_categories") if key in options}
        return self._cam(input_tensor, [self._target(one, **kept) for one in targets], **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._held:
            one.activations_and_grads.release()


def _class(target: Target, name: str) -> int:
    if not hasattr(target, "category"):
        raise ValueError(f"{name} compares classes, got a function as target. Use gradcam, or explain classes.")
    return int(target.category)


def _finer(target: Target, alpha: float = 1.0, comparison_categories: Sequence[int] = (1, 2, 3)) -> Target:
    """The class against others, given by how alike their logits are: 1 is the most alike."""
    weighted = importlib.import_module("pytorch_grad_cam.utils.model_targets").FinerWeightedTarget
    category = _class(target, "FinerCAM")

    def of(output: Tensor) -> Tensor:
        logit = target(output)
        order = (output - logit).abs().detach()
        order[category] = -1
        alike = order.argsort()[[place for place in comparison_categories if place < len(output)]]
        found: Tensor = weighted(category, alike.tolist(), alpha)(output)
        return found

    return of


def _finer_cam(model: nn.Module, layers: list[nn.Module], **options: Any) -> _Around:
    """With targets, FinerCAM is GradCAM; so these must hold what it compares."""
    cam = class_named("FinerCAM")(model, layers, **options)
    return _Around(cam, layers, _finer, [cam.base_cam])


def _refine_cam(model: nn.Module, layers: list[nn.Module], **options: Any) -> _Around:
    cam = class_named("RefineCAM")(model, layers, **options)
    return _Around(cam, layers, lambda target: target, cam.base_cam_per_layer)


def _each(target: Target) -> Target:
    """A target that also takes outputs of a batch, (batch, classes)."""
    category = _class(target, "SESS")
    return lambda output: target(output) if output.dim() == 1 else output[:, category]


def _sess(model: nn.Module, layers: list[nn.Module], **options: Any) -> _Around:
    cam = class_named("SESS")(model, layers, **options)
    return _Around(cam, layers, _each, [cam.base_cam])


def _shapley_cam(model: nn.Module, layers: list[nn.Module], reshape_transform: Transform = None) -> Any:
    if reshape_transform is not None:
        raise ValueError(
            "ShapleyCAM of pytorch-grad-cam reads maps of convolutions only, (batch, channels, height, width): it does "
            f"not arrange tokens, nor channels that come last, as in this {type(model).__name__}. Use gradcam."
        )
    cam = class_named("ShapleyCAM")(model, layers)
    own = cam.get_cam_weights

    def weights(images: Tensor, layer: nn.Module, targets: Any, activations: Tensor, gradients: Tensor) -> Any:
        if gradients.requires_grad:
            return own(images, layer, targets, activations, gradients)
        return gradients.flatten(2).mean(2).cpu().numpy()  # frozen weights follow: the Hessian is 0

    cam.get_cam_weights = weights
    return cam


def _ablation_cam(
    model: nn.Module, layers: list[nn.Module], reshape_transform: Transform = None, **options: Any
) -> Any:
    """With a layer for its channels' place, and the model's own layer back in its place also after an error."""
    ablating = importlib.import_module("pytorch_grad_cam.ablation_layer")
    replace = importlib.import_module("pytorch_grad_cam.utils.find_layers").replace_layer_recursive
    layer = (ablating.AblationLayer if reshape_transform is None else ablating.AblationLayerVit)()
    layer.set_next_batch = partial(ablating.AblationLayerVit.set_next_batch, layer)  # takes signals, too
    given = {"ablation_layer": layer} | options
    cam = class_named("AblationCAM")(model, layers, reshape_transform, **given)
    own = cam.get_cam_weights

    def weights(images: Tensor, target_layer: nn.Module, *args: Any) -> Any:
        if images.dim() != 4:
            raise ValueError(f"AblationCAM takes images and signals, got volumes, {tuple(images.shape)}.")
        try:
            return own(images, target_layer, *args)
        finally:
            replace(model, given["ablation_layer"], target_layer)

    cam.get_cam_weights = weights
    return cam


def _full_grad(model: nn.Module, _: list[nn.Module], reshape_transform: Transform = None) -> Any:
    """With the biases in the order in which their layers run, as its gradients are."""
    left_out = _with_other_biases(model)
    if reshape_transform is not None or left_out:
        name, kind = left_out or ("", "transformer")
        raise ValueError(
            "FullGrad of pytorch-grad-cam reads the biases of Conv2d and BatchNorm2d only, and this "
            f"{type(model).__name__} has others, so its map would be incomplete: {name or 'it'} is a {kind}."
        )
    cam = class_named("FullGrad")(model, [])
    biases, ran = dict(zip(cam.target_layers, cam.bias_data, strict=True)), list[Any]()
    cam.bias_data = ran
    handles = cam.activations_and_grads.handles
    handles.append(model.register_forward_pre_hook(lambda *_: ran.clear()))
    handles += [one.register_forward_hook(lambda layer, *_: ran.append(biases[layer])) for one in biases]
    return cam


def _with_other_biases(model: nn.Module) -> tuple[str, str] | None:
    """The first layer whose bias FullGrad does not read; linear layers have no map."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        norm = getattr(module, "running_mean", None) is not None
        if (own.get("bias") is not None or norm) and type(module) not in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
            return name, type(module).__name__
    return None


ADAPTED: Mapping[str, Callable[..., Any]] = {
    "AblationCAM": _ablation_cam,
    "FinerCAM": _finer_cam,
    "FullGrad": _full_grad,
    "RefineCAM": _refine_cam,
    "SESS": _sess,
    "ShapleyCAM": _shapley_cam,
}
