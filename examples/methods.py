"""The explanations that the demo compares, each as a function (images, targets) -> maps of the images' size."""

from collections.abc import Callable

from captum.attr import InputXGradient, IntegratedGradients, LayerAttribution, NoiseTunnel, Saliency
from torch import Tensor, nn

from captum_ext import CDAM, AttentionMap, IntegratedCDAM, SmoothCDAM

Explain = Callable[[Tensor, Tensor], Tensor]


def explanations(model: nn.Module) -> dict[str, Explain]:
    """The three CDAMs, the attention they refine, and Captum's gradient methods."""
    smooth_grad = NoiseTunnel(Saliency(model))
    return {
        "CDAM": _on_pixels(CDAM(model).attribute),
        "Smooth CDAM": _on_pixels(SmoothCDAM(model).attribute),
        "Integrated CDAM": _on_pixels(IntegratedCDAM(model).attribute),
        "Attention": _on_pixels(AttentionMap(model).attribute),
        "Integrated Gradients": _over_channels(IntegratedGradients(model).attribute, internal_batch_size=50),
        "Input x Gradient": _over_channels(InputXGradient(model).attribute),
        "SmoothGrad": _over_channels(smooth_grad.attribute, nt_samples=20, nt_samples_batch_size=1, stdevs=0.1),
    }


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
