"""The Gaussian blur that removes information from pixels."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

SIGMA = 14 / 224  # of the shorter side


def blurred(images: Tensor, sigma: float | None = None) -> Tensor:
    """Images (batch, channels, ...) of one to three axes under a Gaussian blur, mirrored at their edges.

    Args:
        images: The images.
        sigma: Its standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.

    Raises:
        ValueError: if `sigma` is not positive.
    """
    if sigma is None:
        sigma = SIGMA * min(images.shape[2:])
    if not sigma > 0:
        raise ValueError(f"Expected `blur_sigma` above 0 pixels, got {sigma}.")
    pixels = images.detach().to("cpu", torch.promote_types(images.dtype, torch.float32)).numpy()
    smooth: np.ndarray = gaussian_filter(pixels, sigma, axes=tuple(range(2, pixels.ndim)))
    return torch.from_numpy(smooth).to(images)
