"""The explanations that the demo compares, each as a function (images, targets) -> maps of the images' size."""

from collections.abc import Callable

import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerAttribution, NoiseTunnel, Saliency
from torch import Tensor, nn

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM

Explain = Callable[[Tensor, Tensor], Tensor]


def explanations(model: nn.Module) -> dict[str, Explain]:
    """The three CDAMs, the attention they refine, and Captum's gradient methods."""
    smooth_grad = NoiseTunnel(Saliency(model))
    return {
        "CDAM": _on_pixels(CDAM(model).attribute),
        "Smooth CDAM": _on_pixels(SmoothCDAM(model).attribute),
        "Integrated CDAM": _on_pixels(IntegratedCDAM(model).attribute),
        "Attention": _on_pixels(lambda images, target: last_attention(model, images)),
        "Integrated Gradients": _over_channels(IntegratedGradients(model).attribute, internal_batch_size=50),
        "Input x Gradient": _over_channels(InputXGradient(model).attribute),
        "SmoothGrad": _over_channels(smooth_grad.attribute, nt_samples=20, nt_samples_batch_size=1, stdevs=0.1),
    }


@torch.no_grad()
def last_attention(model: nn.Module, images: Tensor) -> Tensor:
    """The class token's attention to the patches in a timm ViT's last block, mean over heads: (batch, 1, h, w)."""
    attention = model.blocks[-1].attn
    tokens: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    try:
        model(images)
    finally:
        hook.remove()
    heads = attention.qkv(tokens[0]).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(heads[0]), attention.k_norm(heads[1])
    weights = (query[:, :, :1] @ key.transpose(-2, -1) * attention.scale).softmax(-1)
    patches = weights.mean(1)[:, :, model.num_prefix_tokens :]
    return patches.unflatten(-1, model.patch_embed.dynamic_feat_size(images.shape[-2:]))


def _on_pixels(attribute: Callable[..., Tensor]) -> Explain:
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        maps = attribute(images, target=targets)
        return LayerAttribution.interpolate(maps, tuple(images.shape[-2:]), "bilinear")

    return explain


def _over_channels(attribute: Callable[..., Tensor], **options: object) -> Explain:
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        pixels = images.clone().requires_grad_()  # Captum warns when it has to do so itself
        return attribute(pixels, target=targets, **options).sum(1, keepdim=True).detach()

    return explain
