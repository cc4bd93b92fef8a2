"""How images lie in a tensor or array."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Images = TypeVar("Images", Tensor, npt.NDArray[Any])


def is_image(inputs: Tensor) -> bool:
    """Are inputs images (batch, channels, height, width), not token ids or features?"""
    return inputs.dim() == 4 and inputs.is_floating_point()


def channels_are_last(feature_map: Sequence[int], image: Sequence[int]) -> bool | None:
    """Are the channels of a network's feature map last? Told by the proportions of the image; None: they do not say.

    Args:
        feature_map: The shape of a map of an image, with four axes.
        image: The image's, (batch, channels, height, width).
    """
    _, first, second, third = feature_map
    height, width = image[2:]
    as_first, as_last = abs(second * width - third * height), abs(first * width - second * height)
    return None if as_first == as_last else as_last < as_first


def channels_first(images: Images, first: bool | None = None) -> Images:
    """Images (batch, channels, height, width), signals or volumes from either layout; token ids as they are.

    Args:
        images: A tensor or array of three to five dimensions.
        first: False: the channels are last. Else they are second; sizes tell nothing.
    """
    if first is not False or images.ndim not in (3, 4, 5):
        return images
    return images.movedim(-1, 1) if isinstance(images, Tensor) else np.moveaxis(images, -1, 1)
