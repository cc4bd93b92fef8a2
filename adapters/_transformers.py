"""What is known about Hugging Face transformers: vision encoders and BERT's family."""

from typing import Any

from torch import Tensor, nn

from ._attention import Attention, UnknownAttentionError, as_mask, runs, split
from ._site import Site, TokenAnatomy, is_a, pair

# class: (prefix tokens, or None to read the number of registers, name of the last layer's first norm, final norm)
_VISION = {
    "ViTModel": (1, "layernorm_before", "layernorm"),
    "DeiTModel": (2, "layernorm_before", "layernorm"),
    "Dinov2Model": (1, "norm1", "layernorm"),
    "Dinov2WithRegistersModel": (None, "norm1", "layernorm"),
    "CLIPVisionTransformer": (1, "layer_norm1", "post_layernorm"),
    "CLIPVisionModel": (1, "layer_norm1", "post_layernorm"),
}

# class: names of the projections of queries, keys, values and output (None where another module has it)
_ATTENTIONS = {
    "ViTAttention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "DeiTAttention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "Dinov2Attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "Dinov2WithRegistersAttention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "CLIPAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "BertSelfAttention": ("query", "key", "value", None),
    "RobertaSelfAttention": ("query", "key", "value", None),
    "DistilBertSelfAttention": ("q_lin", "k_lin", "v_lin", "out_lin"),
}
_KERNELS = {"sdpa", "eager", "flash_attention_2", "flash_attention_3"}


def transformers_attention(module: Any, tokens: Tensor, rows: int, call: dict[str, Any]) -> Attention | None:
    """How the attentions of transformers' ViT and BERT families compute; None for other modules."""
    names = _ATTENTIONS.get(type(module).__name__)
    if names is None or not runs(module, "transformers.models.", f"{type(module).__name__}.forward"):
        return None
    kernel = module.config._attn_implementation  # noqa: SLF001 # as its forward does
    rounds = kernel == "eager" and tokens.dtype.itemsize > 4  # some families' eager softmax is in float32
    if kernel not in _KERNELS or rounds or module.is_causal or call.get("past_key_values") is not None:
        raise UnknownAttentionError
    query, key, value = (split(getattr(module, name), 1)[0] for name in names[:3])
    output = None if names[3] is None else getattr(module, names[3])
    scale = module.scaling if hasattr(module, "scaling") else module.scale
    width = module.head_dim if hasattr(module, "head_dim") else module.attention_head_size
    return Attention(
        query,
        key,
        value,
        heads=query.weight.shape[0] // width,
        scale=scale,
        output=lambda mixed, _: mixed if output is None else output(mixed),
        returns_weights=True,
        mask=as_mask(call.get("attention_mask"), tokens),
    )


def transformers_anatomy(model: Any) -> TokenAnatomy | None:
    """The anatomy of a ViT, DeiT, Dinov2, CLIP vision, BERT, RoBERTa or DistilBERT encoder; None for anything else."""
    for name, parts in _VISION.items():
        if is_a(model, "transformers.", name) and hasattr(model, parts[2]):
            return _vision(model, name, *parts)
    if is_a(model, "transformers.", "BertModel", "RobertaModel"):
        layers = model.encoder.layer
        tokens = Site(layers[-1].attention.self, at_input=True)
        latent = Site(layers[-1]) if model.pooler is None else Site(model.pooler)
        attentions = tuple(layer.attention.self for layer in layers)
        return TokenAnatomy(f"transformers {type(model).__name__}", tokens, latent, tuple(layers), attentions)
    if is_a(model, "transformers.", "DistilBertModel"):
        layers = model.transformer.layer
        tokens = Site(layers[-1].attention, at_input=True)
        attentions = tuple(layer.attention for layer in layers)
        return TokenAnatomy(f"transformers {type(model).__name__}", tokens, Site(layers[-1]), tuple(layers), attentions)
    return None


def _vision(model: Any, family: str, prefix: int | None, first_norm: str, final_norm: str) -> TokenAnatomy:
    layers = _layers(model)
    return TokenAnatomy(
        family=f"transformers {family}",
        tokens=Site(getattr(layers[-1], first_norm)),
        latent=Site(getattr(model, final_norm)),
        blocks=tuple(layers),
        attentions=tuple(getattr(layer, "attention", getattr(layer, "self_attn", None)) for layer in layers),
        prefix=1 + model.config.num_register_tokens if prefix is None else prefix,
        patch=pair(model.config.patch_size),
        image_size=pair(model.config.image_size),
    )


def _layers(model: Any) -> nn.ModuleList:
    """The encoder's layers, wherever this version of transformers and this family keep them."""
    holder = model.encoder if hasattr(model, "encoder") else model
    layers: nn.ModuleList = holder.layers if hasattr(holder, "layers") else holder.layer
    return layers
