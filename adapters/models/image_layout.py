"""How images lie in a tensor or array."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Images = TypeVar("Images", Tensor, npt.NDArray[Any])


def is_image(inputs: Tensor) -> bool:
    """Are inputs images (batch, channels, height, width), not token ids or features?"""
    return inputs.dim() == 4 and inputs.is_floating_point()


def channels_first(images: Images, first: bool | None = None) -> Images:
    """Images (batch, channels, height, width) from either layout; inputs of other dimensions as they are.

    Args:
        images: A tensor or array of four dimensions, the channels second or last.
        first: Are the channels second? None: they are last if that axis is shorter than the two others.
    """
    if images.ndim != 4:
        return images
    last = images.shape[3] < min(images.shape[1:3]) if first is None else not first
    if not last:
        return images
    return images.movedim(3, 1) if isinstance(images, Tensor) else np.moveaxis(images, 3, 1)
