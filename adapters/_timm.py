"""What is known about timm's transformers."""

from typing import Any

import torch
from torch import Tensor

from ._attention import Attention, Projection, Turn, UnknownAttentionError, as_mask, runs, split, unless_identity
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
        blocks=tuple(model.blocks),
        attentions=tuple(getattr(block, "attn", None) for block in model.blocks),
        prefix=model.num_prefix_tokens,
        patch=pair(model.patch_embed.feat_ratio(as_scalar=False)),
        image_size=pair(model.patch_embed.img_size),
        class_token=model.cls_token is not None,
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


def timm_attention(module: Any, tokens: Tensor, rows: int, call: dict[str, Any]) -> Attention | None:
    """How timm's attentions of ViT, Eva and Beit compute; None for other modules."""
    rope = None
    if runs(module, "timm.layers.attention", "Attention.forward"):
        query, key, value = split(module.qkv)
    elif runs(module, "timm.layers.attention", "AttentionRope.forward") or runs(
        module, "timm.models.eva", "EvaAttention.forward"
    ):
        query, key, value = _eva_projections(module)
        rope = call.get("rope")
        if getattr(module, "num_kv_groups", 1) != 1:
            raise UnknownAttentionError
    elif runs(module, "timm.models.beit", "Attention.forward"):
        return _beit(module, tokens, call.get("shared_rel_pos_bias"))
    else:
        return None
    if call.get("is_causal"):
        raise UnknownAttentionError

    def output(mixed: Tensor, own: Tensor) -> Tensor:
        mixed = module.norm(mixed)
        if getattr(module, "gate", None) is not None:
            mixed = mixed * module.gate(own).sigmoid()
        out: Tensor = module.proj_drop(module.proj(mixed))
        return out

    return Attention(
        query,
        key,
        value,
        heads=module.num_heads,
        scale=_scale(module, query),
        output=output,
        mask=as_mask(call.get("attn_mask"), tokens),
        turn_query=_turn(module, unless_identity(module.q_norm), rope, rows),
        turn_key=_turn(module, unless_identity(module.k_norm), rope, tokens.shape[1]),
        turn_is_linear=unless_identity(module.k_norm) is None,
    )


def _scale(module: Any, query: Projection) -> float:
    """Fused attention does not look at the module's own scale."""
    scale: float = module.scale
    return (query.weight.shape[0] // module.num_heads) ** -0.5 if module.fused_attn else scale


def _eva_projections(module: Any) -> list[Projection]:
    if module.qkv is None:
        return [part for linear in (module.q_proj, module.k_proj, module.v_proj) for part in split(linear, 1)]
    return _with_biases(module)


def _with_biases(module: Any) -> list[Projection]:
    """The projections of a fused layer whose biases, but for AttentionRope's, lie beside it."""
    parts = split(module.qkv)
    if getattr(module, "q_bias", None) is None:
        return parts
    biases = (module.q_bias, module.k_bias, module.v_bias)
    return [Projection(part.weight, bias) for part, bias in zip(parts, biases, strict=True)]


def _turn(module: Any, norm: Turn | None, rope: Tensor | None, rows: int) -> Turn | None:
    """Norm and rotary embedding of the first rows' queries or keys; prefix tokens are not rotated."""
    if rope is None or rows <= module.num_prefix_tokens:
        return norm
    prefix = module.num_prefix_tokens
    rotate = type(module).forward.__globals__["apply_rot_embed_cat"]
    angles = rope[..., : rows - prefix, :]

    def turn(heads: Tensor) -> Tensor:
        heads = heads if norm is None else norm(heads)
        patches = rotate(heads[:, :, prefix:], angles.to(heads), half=getattr(module, "rotate_half", False))
        return torch.cat([heads[:, :, :prefix], patches], dim=2)

    return turn


def _beit(module: Any, tokens: Tensor, shared: Tensor | None) -> Attention:
    own = None if module.relative_position_bias_table is None else module._get_rel_pos_bias()  # noqa: SLF001 # as its forward does
    masks = [mask for mask in (own, shared) if mask is not None]
    query, key, value = _with_biases(module)
    return Attention(
        query,
        key,
        value,
        heads=module.num_heads,
        scale=_scale(module, query),
        output=lambda mixed, _: module.proj_drop(module.proj(mixed)),
        mask=sum(masks[1:], masks[0]) if masks else None,
    )
