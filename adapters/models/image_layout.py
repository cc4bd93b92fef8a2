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
        images: A tensor or array of three to five dimensions.
        first: False: the channels are last. Else they are second; sizes tell nothing.
    """
    if first is not False or images.ndim not in (3, 4, 5):
        return images
    return images.movedim(-1, 1) if isinstance(images, Tensor) else np.moveaxis(images, -1, 1)
