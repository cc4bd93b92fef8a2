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
    """Images (batch, channels, height, width), signals or volumes from either layout; token ids as they are.

    Args:
        images: A tensor or array of three to five dimensions, the channels second or last.
        first: Are the channels second? None: those of images are last if that axis is shorter than the two others; of
            signals and volumes they are second.
    """
    if images.ndim not in (3, 4, 5):
        return images
    guessed = images.ndim == 4 and images.shape[3] < min(images.shape[1:3])
    if not (guessed if first is None else not first):
        return images
    return images.movedim(-1, 1) if isinstance(images, Tensor) else np.moveaxis(images, -1, 1)
