"""Finding the transformer inside a user's model."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ._attention import Attention, UnknownAttentionError
from ._dino import dino_anatomy, dino_attention
from ._site import TokenAnatomy
from ._timm import timm_anatomy, timm_attention
from ._torchvision import torch_attention, torchvision_anatomy
from ._transformers import transformers_anatomy, transformers_attention

_FAMILIES = (timm_anatomy, torchvision_anatomy, transformers_anatomy, dino_anatomy)
_ATTENTIONS = (timm_attention, torch_attention, transformers_attention, dino_attention)
_NORMS_BEFORE_ATTENTION = ("norm1", "ln_1", "layernorm_before", "layer_norm1")


def find_anatomy(model: nn.Module) -> TokenAnatomy:
    """Where the tokens enter the last attention of the one transformer in a model.

    The transformer may be the model itself or a part of it, as in `nn.Sequential(backbone, head)`.

    Raises:
        ValueError: if the model holds no transformer that is known here, or several.
    """
    found = list(_search(model))
    if len(found) == 1:
        return found[0]
    name = type(model).__name__
    if found:
        raise ValueError(
            f"{name} holds {len(found)} transformers ({', '.join(a.family for a in found)}), so it is not clear whose "
            "tokens to explain. Pass `layer=`, the norm in front of the attention you mean."
        )
    raise ValueError(_refusal(model, name))


def read_attention(module: nn.Module, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attention:
    """What a call of an attention module computes for the first `rows` tokens.

    Raises:
        UnknownAttentionError: if the module is not known here, or does something that is not.
    """
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    call = dict(zip(names, args, strict=False)) | kwargs
    tokens = next(iter(call.values()), None)
    if not isinstance(tokens, Tensor) or tokens.dim() != 3 or not tokens.is_floating_point():
        raise UnknownAttentionError
    found = next((a for family in _ATTENTIONS if (a := family(module, tokens, rows, call)) is not None), None)
    if found is None:
        raise UnknownAttentionError
    return found


def known_classes(model: nn.Module) -> int | None:
    """How many logits a classifier of timm, torchvision or transformers returns, where that can be told unrun."""
    if not type(model).forward.__module__.startswith(("timm.", "torchvision.", "transformers.")):
        return None
    for name in ("head", "heads", "classifier", "cls_classifier"):
        linear = [m for m in getattr(model, name, nn.Identity()).modules() if isinstance(m, nn.Linear)]
        if linear:
            return linear[-1].out_features
    return None


def _search(module: nn.Module) -> Iterator[TokenAnatomy]:
    anatomy = next((a for family in _FAMILIES if (a := family(module)) is not None), None)
    if anatomy is not None:
        yield anatomy
        return
    for child in module.children():
        yield from _search(child)


def _refusal(model: nn.Module, name: str) -> str:
    norms = [path for path, _ in model.named_modules() if path.rsplit(".", 1)[-1] in _NORMS_BEFORE_ATTENTION]
    if norms:
        return (
            f"{name} is not one of the transformers whose tokens are found automatically (timm VisionTransformer, Eva "
            "and Beit, torchvision VisionTransformer, transformers ViT, DeiT, Dinov2, CLIP vision, BERT, RoBERTa and "
            f"DistilBERT, DINO). Pass the layer yourself: layer=model.get_submodule({norms[-1]!r}) is the norm in "
            "front of its last attention."
        )
    attends = any("attention" in type(m).__name__.lower() for m in model.modules())
    if not attends and any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return (
            f"{name} is a convolutional network without attention, so there are no tokens to explain. Use "
            "captum.attr.LayerGradCam or a method of pytorch-grad-cam, or pass `layer=` a convolution whose output "
            "times gradient you want."
        )
    return (
        f"{name} holds no transformer that is known here. Pass `layer=`, the module whose output (batch, tokens, "
        "channels) is what enters the last attention; or, where the norm comes after the attention as in BERT's "
        "family, the last attention itself, `layer=model...attention.self`, with `attribute_to_layer_input=True`."
    )
