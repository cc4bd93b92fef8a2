"""Empty inputs on which a model can be run to see what it does."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_SIZES = (224, 64, 32, 28)  # of images to try a network with, where it does not say its own
_TOKENS = 4


def example_inputs(model: nn.Module) -> Iterator[dict[str, Tensor] | Tensor]:
    """Inputs to try, one after the other: token ids by name, or images (1, channels, height, width).

    Raises:
        TypeError: if it is not a model.
        ValueError: if nothing says what it reads.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model, a torch.nn.Module, got {type(model)}.")
    config: Any = getattr(model, "config", None)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if hasattr(config, "vocab_size") and not hasattr(config, "image_size"):
        yield {"input_ids": torch.ones(1, _TOKENS, dtype=torch.long, device=device)}
        return
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution: expected a network that reads images.")
    sides = [
        getattr(getattr(model, "patch_embed", None), "img_size", None),  # timm's, told when it was built
        (getattr(model, "pretrained_cfg", None) or {}).get("input_size"),
        getattr(config, "image_size", getattr(model, "image_size", None)),
    ]
    own = next((side for side in sides if side), None)
    for side in _SIZES if own is None else (own,):
        height, width = (side, side) if isinstance(side, int) else side[-2:]
        yield torch.zeros(1, first.in_channels, height, width, dtype=first.weight.dtype, device=device)
