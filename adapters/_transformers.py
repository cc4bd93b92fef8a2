"""What is known about Hugging Face transformers: vision encoders and BERT's family."""

from typing import Any

from torch import nn

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


def transformers_anatomy(model: Any) -> TokenAnatomy | None:
    """The anatomy of a ViT, DeiT, Dinov2, CLIP vision, BERT, RoBERTa or DistilBERT encoder; None for anything else."""
    for name, parts in _VISION.items():
        if is_a(model, "transformers.", name) and hasattr(model, parts[2]):
            return _vision(model, name, *parts)
    if is_a(model, "transformers.", "BertModel", "RobertaModel"):
        layers = model.encoder.layer
        tokens = Site(layers[-1].attention.self, at_input=True)
        latent = Site(layers[-1]) if model.pooler is None else Site(model.pooler)
        return TokenAnatomy(f"transformers {type(model).__name__}", tokens, latent)
    if is_a(model, "transformers.", "DistilBertModel"):
        layers = model.transformer.layer
        tokens = Site(layers[-1].attention, at_input=True)
        return TokenAnatomy(f"transformers {type(model).__name__}", tokens, Site(layers[-1]))
    return None


def _vision(model: Any, family: str, prefix: int | None, first_norm: str, final_norm: str) -> TokenAnatomy:
    return TokenAnatomy(
        family=f"transformers {family}",
        tokens=Site(getattr(_layers(model)[-1], first_norm)),
        latent=Site(getattr(model, final_norm)),
        prefix=1 + model.config.num_register_tokens if prefix is None else prefix,
        patch=pair(model.config.patch_size),
        image_size=pair(model.config.image_size),
    )


def _layers(model: Any) -> nn.ModuleList:
    """The encoder's layers, wherever this version of transformers and this family keep them."""
    holder = model.encoder if hasattr(model, "encoder") else model
    layers: nn.ModuleList = holder.layers if hasattr(holder, "layers") else holder.layer
    return layers
