"""Signed maps drawn over a video."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .signed_overlay import scale_of, signed_overlay


def video_overlay(video: Tensor, maps: Tensor, scale: float | None = None) -> npt.NDArray[np.float32]:
    """Lay signed maps over each frame of a video: red for positive, blue for negative, zero transparent.

    A map may have fewer frames than the video, as of models that cut it into tubelets: frame `i` of `T` shows the
    map's frame `floor(i * t / T)`. All frames and maps share one colour scale, so they can be compared.

    Args:
        video: (frames, channels, height, width) with 1 or 3 channels, or (frames, height, width), in [0, 1].
        maps: (maps, t, h, w) or (t, h, w), with at most as many frames as the video; resized to its height and width
            by bilinear interpolation.
        scale: The absolute value that is drawn opaque. None: the largest absolute value of all maps.

    Returns:
        (maps, frames, height, width, 3) colours in [0, 1]; (frames, height, width, 3) for a single map.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: if a shape does not fit, the video is not in [0, 1], or `scale` is not positive.

    Example:
        >>> import torch
        >>> from captum_ext import video_overlay
        >>> video_overlay(torch.rand(8, 3, 48, 48), torch.randn(4, 6, 6)).shape  # what `save_gif` writes
        (8, 48, 48, 3)
    """
    check_video(video)
    number = frames_of(len(video), maps)
    scale = scale_of(maps, scale)
    several = maps.reshape(-1, *maps.shape[-3:])
    drawn = [signed_overlay(frame, several[:, k], scale) for frame, k in zip(video, number, strict=True)]
    return np.stack(drawn, 1).reshape(*maps.shape[:-3], len(video), *drawn[0].shape[1:])


def check_video(video: Tensor) -> None:
    """Refuse what is no video whose frames can be drawn.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if its shape or its values are others.
    """
    if not isinstance(video, Tensor):
        raise TypeError(f"Expected `video` to be a tensor, got {type(video)}.")
    channels = video.shape[1] if video.dim() == 4 else 1
    if video.dim() not in (3, 4) or channels not in (1, 3) or not len(video):
        swapped = video.dim() == 4 and video.shape[0] in (1, 3)
        raise ValueError(
            "Expected `video` (frames, 1 or 3 channels, height, width) or (frames, height, width), got shape "
            f"{tuple(video.shape)}." + (" Are the channels first? Pass `video.transpose(0, 1)`." if swapped else "")
        )
    low, high = float(video.min()), float(video.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Expected `video` in [0, 1], got [{low:.3g}, {high:.3g}]. Undo the model's normalisation first."
        )


def frames_of(count: int, maps: Tensor) -> list[int]:
    """Which frame of the maps lies on each of so many frames of a video.

    Raises:
        TypeError: if the maps are no tensor.
        ValueError: if they are not finite, or have another shape or more frames.
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"Expected `maps` to be a tensor, got {type(maps)}.")
    if maps.dim() not in (3, 4) or not maps.numel() or not bool(torch.isfinite(maps).all()):
        raise ValueError(f"Expected finite `maps` (maps, frames, h, w) or (frames, h, w), got {tuple(maps.shape)}.")
    if maps.shape[-3] > count:
        raise ValueError(
            f"Expected maps with at most as many frames as the video, {count}, got {maps.shape[-3]}: shape "
            f"{tuple(maps.shape)}. Pass the video that was explained, with its frames as the first axis."
        )
    return [number * maps.shape[-3] // count for number in range(count)]
