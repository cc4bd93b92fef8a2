"""What is known about torchvision's Vision Transformer."""

from typing import Any

from ._site import Site, TokenAnatomy, is_a, pair


def torchvision_anatomy(model: Any) -> TokenAnatomy | None:
    """The anatomy of a torchvision VisionTransformer; None for anything else."""
    if not is_a(model, "torchvision.models.vision_transformer", "VisionTransformer"):
        return None
    return TokenAnatomy(
        family="torchvision VisionTransformer",
        tokens=Site(model.encoder.layers[-1].ln_1),
        latent=Site(model.heads, at_input=True),
        prefix=1,
        patch=pair(model.patch_size),
        image_size=pair(model.image_size),
    )
