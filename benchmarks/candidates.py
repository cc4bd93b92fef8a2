"""What is compared: models with random weights, and the methods that explain them."""

from collections.abc import Callable
from typing import Literal, cast

import timm
import torch
from captum import attr
from measuring import Run
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adapters import reshape_transform_for
from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    PartialLRP,
    RelevancePropagation,
    SmoothCDAM,
    TokenAblation,
)

OURS = (
    "CDAM",
    "CDAM, 10 targets",
    "IntegratedCDAM",
    "IntegratedCDAM, baseline given",
    "SmoothCDAM",
    "TokenAblation",
)
BASELINES = ("AttentionMap", "AttentionRollout", "PartialLRP", "RelevancePropagation")
OTHERS = (
    *BASELINES,
    "Captum LayerGradientXActivation",
    "Captum InputXGradient",
    "pytorch-grad-cam GradCAM",
    "Captum LayerIntegratedGradients",
    "Captum NoiseTunnel",
    "Captum IntegratedGradients",
)
WHOLE_PASSES = OTHERS[-3:]  # these run the whole model for each step or sample
IMAGES_AT_ONCE = 32  # the most that those evaluate at once; it bounds their memory

LABELS = {"vit_small_patch16_224": "ViT-S/16", "vit_base_patch16_224": "ViT-B/16", "vit_small_patch8_224": "ViT-S/8"}
KINDS = ("", "average pooling", "attention hooked", "last block hooked", "as a function")
PLAIN, AVERAGE, ATTENTION, BLOCK, FUNCTION = KINDS


def make_model(name: str, kind: str = PLAIN) -> VisionTransformer:
    """A ViT of timm with random weights; "tiny" is a small one for tests."""
    torch.manual_seed(0)
    pool: Literal["avg", "token"] = "avg" if kind == AVERAGE else "token"
    if name == "tiny":
        model = VisionTransformer(32, 8, num_classes=10, embed_dim=32, depth=2, num_heads=2, global_pool=pool)
    else:
        model = cast(VisionTransformer, timm.create_model(name, global_pool=pool))
    hooked = {ATTENTION: "attn", BLOCK: ""}
    if kind in hooked:
        model.blocks[-1].get_submodule(hooked[kind]).register_forward_hook(lambda *_: None)
    return model.eval()


def label(name: str, kind: str = PLAIN) -> str:
    """How a model is called in tables."""
    short = LABELS.get(name, name)
    return f"{short} {kind}" if kind else short


def methods(model: VisionTransformer, images: Tensor, steps: int, kind: str = PLAIN) -> dict[str, Run]:
    """Each method as a call without arguments; all explain class 1 at the norm in front of the last attention."""
    layer = model.blocks[-1].get_submodule("norm1")
    baseline = torch.randn_like(model.get_parameter("pos_embed"))
    if kind == FUNCTION:
        return ours(lambda x: model(x), images, steps, baseline, layer)
    return ours(model, images, steps, baseline) | others(model, images, steps, layer)


def ours(
    forward: Callable[[Tensor], Tensor], images: Tensor, steps: int, baseline: Tensor, layer: nn.Module | None = None
) -> dict[str, Run]:
    """The methods of this project, made anew for each call."""
    runs: tuple[Run, ...] = (
        lambda: CDAM(forward, layer).attribute(images, 1),
        lambda: CDAM(forward, layer).attribute_targets(images, list(range(10))),
        lambda: IntegratedCDAM(forward, layer).attribute(images, 1, n_steps=steps),
        lambda: IntegratedCDAM(forward, layer).attribute(images, 1, n_steps=steps, baselines=baseline),
        lambda: SmoothCDAM(forward, layer).attribute(images, 1, nt_samples=steps),
        lambda: TokenAblation(forward, layer).attribute(images, 1),
    )
    return dict(zip(OURS, runs, strict=True))


def others(model: VisionTransformer, images: Tensor, steps: int, layer: nn.Module) -> dict[str, Run]:
    """The baselines of CDAM's paper and the methods of other libraries, with as many images at once as memory bears."""
    path = {"n_steps": steps, "internal_batch_size": max(len(images), IMAGES_AT_ONCE)}
    noise = {"nt_samples": steps, "nt_samples_batch_size": max(1, IMAGES_AT_ONCE // len(images))}
    layer_gradient = attr.LayerGradientXActivation(model, layer)
    runs: tuple[Run, ...] = (
        lambda: AttentionMap(model).attribute(images),
        lambda: AttentionRollout(model).attribute(images),
        lambda: PartialLRP(model).attribute(images, 1),
        lambda: RelevancePropagation(model).attribute(images, 1),
        lambda: layer_gradient.attribute(images, 1),
        lambda: attr.InputXGradient(model).attribute(images, 1),
        lambda: grad_cam(model, images, layer),
        lambda: attr.LayerIntegratedGradients(model, layer).attribute(images, target=1, **path),
        lambda: attr.NoiseTunnel(layer_gradient).attribute(images, target=1, **noise),
        lambda: attr.IntegratedGradients(model).attribute(images, target=1, **path),
    )
    return dict(zip(OTHERS, runs, strict=True))


def grad_cam(model: VisionTransformer, images: Tensor, layer: nn.Module) -> object:
    """GradCAM; its hooks and the gradients that it leaves in the weights are removed."""
    targets = [ClassifierOutputTarget(1) for _ in images]
    with GradCAM(model, [layer], reshape_transform=reshape_transform_for(model)) as cam:
        maps: object = cam(input_tensor=images.detach(), targets=targets)
    model.zero_grad()
    return maps
