"""What is known about the Vision Transformers of the DINO and DINOv2 hubs, and the many copies of them."""

from typing import Any

from torch import Tensor

from ._attention import Attention, UnknownAttentionError, split
from ._site import Site, TokenAnatomy, pair

_PARTS = {"patch_embed", "pos_drop", "blocks", "norm", "fc_norm", "head"}


def dino_anatomy(model: Any) -> TokenAnatomy | None:
    """The anatomy of DINO's own VisionTransformer class; None for anything else.

    The class comes with the weights' repository, so it is known by its parts: a class token, patches, blocks of
    `norm1` and `attn`, a final norm, and nothing that this code has not seen.
    """
    parts = {name for name, _ in model.named_children()}
    if not ({"patch_embed", "blocks", "norm"} <= parts <= _PARTS and hasattr(model, "cls_token")):
        return None
    blocks = tuple(model.blocks.children())
    if not blocks or not all(hasattr(block, part) for block in blocks for part in ("norm1", "attn", "mlp")):
        return None
    patch = getattr(model.patch_embed, "patch_size", None)
    if patch is None:
        return None
    registers = getattr(model, "register_tokens", None)
    return TokenAnatomy(
        family=f"DINO {type(model).__name__}",
        tokens=Site(blocks[-1].norm1),
        latent=Site(model.norm),
        blocks=blocks,
        attentions=tuple(block.attn for block in blocks),
        prefix=1 if registers is None else 1 + registers.shape[1],
        patch=pair(patch),
        image_size=pair(getattr(model.patch_embed, "img_size", None)),
    )


def dino_attention(module: Any, tokens: Tensor, rows: int, call: dict[str, Any]) -> Attention | None:
    """How the attention of DINO's own classes computes, known by its parts; None for other modules."""
    parts = {name for name, _ in module.named_children()}
    if not {"qkv", "proj"} <= parts <= {"qkv", "proj", "attn_drop", "proj_drop"} or not hasattr(module, "num_heads"):
        return None
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if own or any(value is not None for value in list(call.values())[1:]):
        raise UnknownAttentionError
    query, key, value = split(module.qkv)
    returns_weights = isinstance(module(tokens[:1, :1]), tuple)

    def output(mixed: Tensor, _: Tensor) -> Tensor:
        out: Tensor = module.proj(mixed)
        return module.proj_drop(out) if hasattr(module, "proj_drop") else out

    width = query.weight.shape[0] // module.num_heads
    scale = getattr(module, "scale", width**-0.5)
    return Attention(
        query,
        key,
        value,
        heads=module.num_heads,
        scale=scale,
        output=output,
        returns_weights=returns_weights,
        known_by_parts=True,
    )
