"""What is known about torchvision's Vision Transformer."""

from typing import Any

from torch import Tensor, nn

from ._attention import Attention, Projection, UnknownAttentionError
from ._site import Site, TokenAnatomy, is_a, pair


def torchvision_anatomy(model: Any) -> TokenAnatomy | None:
    """The anatomy of a torchvision VisionTransformer; None for anything else."""
    if not is_a(model, "torchvision.models.vision_transformer", "VisionTransformer"):
        return None
    return TokenAnatomy(
        family="torchvision VisionTransformer",
        tokens=Site(model.encoder.layers[-1].ln_1),
        latent=Site(model.heads, at_input=True),
        blocks=tuple(model.encoder.layers),
        attentions=tuple(layer.self_attention for layer in model.encoder.layers),
        prefix=1,
        patch=pair(model.patch_size),
        image_size=pair(model.image_size),
    )


def torch_attention(module: Any, tokens: Tensor, rows: int, call: dict[str, Any]) -> Attention | None:
    """How torch's own multi-head attention computes; None for other modules."""
    if type(module) is not nn.MultiheadAttention:
        return None
    if not (call["key"] is tokens is call["value"]) or call.get("is_causal") or call.get("need_weights", True):
        raise UnknownAttentionError
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn or not module.batch_first:
        raise UnknownAttentionError
    if call.get("key_padding_mask") is not None or call.get("attn_mask") is not None:
        raise UnknownAttentionError
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    parts = zip(module.in_proj_weight.chunk(3), biases, strict=True)
    query, key, value = (Projection(weight, bias) for weight, bias in parts)
    return Attention(
        query,
        key,
        value,
        heads=module.num_heads,
        scale=module.head_dim**-0.5,
        output=lambda mixed, _: module.out_proj(mixed),
        returns_weights=True,
    )
