"""How images lie in a tensor or array."""

from typing import Any

import torch
from torch import Tensor


def is_image(inputs: Tensor) -> bool:
    """Are inputs images (batch, channels, height, width), not token ids or features?"""
    return inputs.dim() == 4 and inputs.is_floating_point()


def channels_first(images: Any, first: bool | None = None) -> Tensor:
    """Images (batch, channels, height, width) from a tensor or array of either layout; other inputs as they are.

    Args:
        images: Of four dimensions, the channels second or last.
        first: Are the channels second? None: they are last if that axis is shorter than the two others.
    """
    tensor = torch.as_tensor(images)
    if tensor.dim() != 4:
        return tensor
    last = tensor.shape[3] < min(tensor.shape[1:3]) if first is None else not first
    return tensor.movedim(3, 1) if last else tensor
