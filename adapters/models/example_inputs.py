"""Empty inputs on which a model can be run to see what it does."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIDES = (224, 64, 32, 28)  # of images to try a network with, where it does not say its own
_SIZES: dict[type[nn.Module], list[tuple[int, ...]]] = {
    nn.Conv1d: [(length,) for length in (1024, *_SIDES)],
    nn.Conv2d: [(side, side) for side in _SIDES],
    nn.Conv3d: [(64, 64, 64), (16, 224, 224), (32, 32, 32), (28, 28, 28)],
}
_TOKENS = 4


def example_inputs(model: nn.Module) -> Iterator[dict[str, Tensor] | Tensor]:
    """Inputs to try, one after the other: token ids by name, or images (1, channels, height, width).

    For networks whose first convolution has one or three axes, signals (1, channels, length) or volumes.

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
    first = next((m for m in model.modules() if isinstance(m, _CONVOLUTIONS)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution: expected a network that reads images.")
    sides = [
        getattr(getattr(model, "patch_embed", None), "img_size", None),  # timm's, told when it was built
        (getattr(model, "pretrained_cfg", None) or {}).get("input_size"),
        getattr(config, "image_size", getattr(model, "image_size", None)),
    ]
    own = next((side for side in sides if side), None)
    sizes = next(sizes for kind, sizes in _SIZES.items() if isinstance(first, kind))
    if own is not None and isinstance(first, nn.Conv2d):
        sizes = [(own, own) if isinstance(own, int) else tuple(own[-2:])]
    for size in sizes:
        yield torch.zeros(1, first.in_channels, *size, dtype=first.weight.dtype, device=device)
