"""The small Vision Transformer that reads digit scenes, and its bundled weights."""

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .digit_scenes import CANVAS, Scenes

WEIGHTS = Path(__file__).parent / "weights" / "digit_vit.safetensors"


class Stem(nn.Sequential):
    """Two convolutions in front of the patches, from 48 x 48 pixels to 12 x 12 features.

    Without them a ViT this small needs hours to see its first digit.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 24, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.GELU(),
            nn.Conv2d(24, 48, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.GELU(),
        )


def build(patch_drop_rate: float = 0.0) -> VisionTransformer:
    """A timm ViT of four blocks on 12 x 12 patches, one class token and ten logits, one a digit."""
    return VisionTransformer(
        img_size=CANVAS,
        patch_size=1,
        in_chans=1,
        num_classes=10,
        embed_dim=96,
        depth=4,
        num_heads=3,
        patch_drop_rate=patch_drop_rate,
        embed_layer=functools.partial(HybridEmbed, backbone=Stem()),
    )


def save(model: nn.Module, path: Path = WEIGHTS) -> None:
    """Write the weights in half precision, which changes no prediction and halves the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()}
    save_file(halved, path)


def load(path: Path = WEIGHTS) -> VisionTransformer:
    """The trained model in float32 and evaluation mode.

    Example:
        >>> import torch
        >>> from xai_compare import digit_vit
        >>> digit_vit.load()(torch.zeros(1, 1, 48, 48)).shape
        torch.Size([1, 10])
    """
    if not path.exists():
        raise FileNotFoundError(f"No weights at {path}. Make them with: python examples/train_digit_vit.py")
    model = build()
    state = {name: v.float() if v.is_floating_point() else v for name, v in load_file(path).items()}
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def top_digits_found(model: nn.Module, scenes: Scenes) -> Tensor:
    """(batch,) booleans: are all digits of the scene, and no others, at the top of the logits?"""
    logits = torch.cat([model(images) for images in scenes.images.split(250)])
    shown = scenes.labels.shape[1]
    top = logits.topk(shown).indices
    return (top.sort().values == scenes.labels.sort().values).all(dim=1)
