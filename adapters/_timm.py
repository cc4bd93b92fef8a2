"""What is known about timm's transformers."""

from typing import Any

from ._site import Site, TokenAnatomy, is_a, pair


def timm_anatomy(model: Any) -> TokenAnatomy | None:
    """The anatomy of a timm VisionTransformer, Eva or Beit; None for anything else."""
    if not (
        is_a(model, "timm.models.vision_transformer", "VisionTransformer")
        or is_a(model, "timm.models.eva", "Eva")
        or is_a(model, "timm.models.beit", "Beit")
    ):
        return None
    last = model.blocks[-1]
    tokens = _last_attention(last)
    if tokens is None:
        raise ValueError(
            f"The last block of this {type(model).__name__} is a {type(last).__name__}, whose attention does not read "
            "one set of tokens. Pass `layer=` a module whose output is the tokens to be explained."
        )
    return TokenAnatomy(
        family=f"timm {type(model).__name__}",
        tokens=tokens,
        latent=Site(model.head, at_input=True),
        prefix=model.num_prefix_tokens,
        patch=pair(model.patch_embed.feat_ratio(as_scalar=False)),
        image_size=pair(model.patch_embed.img_size),
    )


def _last_attention(block: Any) -> Site | None:
    """Where tokens enter the block's attention: after the norm before it, where there is one."""
    if is_a(block, "timm", "ResPostBlock", "EvaBlockPostNorm"):  # their norm1 follows the attention
        return Site(block.attn, at_input=True)
    if is_a(block, "timm", "ParallelScalingBlock", "DiffParallelScalingBlock"):
        return Site(block.in_norm)
    if hasattr(block, "norm1") and hasattr(block, "attn"):
        return Site(block.norm1)
    return None
