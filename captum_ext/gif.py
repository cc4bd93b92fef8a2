"""Pictures as an animation."""

from os import PathLike
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FASTEST = 50.0  # viewers slow down what changes sooner than after two hundredths of a second


def save_gif(path: str | PathLike[str] | IO[bytes], frames: npt.NDArray[Any], fps: float = 8.0) -> None:
    """Write frames as an animated GIF that repeats for ever.

    Args:
        path: The file to write, or one that is open.
        frames: (frames, height, width, 3) colours in [0, 1], as of `video_overlay`.
        fps: Frames a second, at most 50. GIF knows times in hundredths of a second, to which a frame's is rounded.

    Raises:
        TypeError: if `frames` is not an array of floating-point numbers.
        ValueError: if its shape or values are others, or `fps` is not in (0, 50].

    Example:
        >>> import io
        >>> import numpy as np
        >>> from captum_ext import save_gif
        >>> file = io.BytesIO()  # or a path, as "noise.gif"
        >>> save_gif(file, np.random.rand(4, 32, 32, 3), fps=2)
        >>> file.getvalue()[:6]
        b'GIF89a'
    """
    if not isinstance(frames, np.ndarray) or not np.issubdtype(frames.dtype, np.floating):
        raise TypeError(f"Expected `frames` to be an array of floating-point numbers, got {_kind(frames)}.")
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(
            f"Expected `frames` (frames, height, width, 3), got shape {frames.shape}. Of several maps write one at a "
            "time, `frames[0]`."
        )
    if not (frames.min() >= 0 and frames.max() <= 1):
        raise ValueError(f"Expected `frames` in [0, 1], got [{frames.min():.3g}, {frames.max():.3g}].")
    if not 0 < fps <= FASTEST:
        raise ValueError(f"Expected `fps` above 0 and at most {FASTEST:g}, got {fps}.")
    pictures = [Image.fromarray((255 * one).round().astype(np.uint8)) for one in frames]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=10 * round(100 / fps), loop=0)


def _kind(frames: Any) -> str:
    return f"one of {frames.dtype}" if isinstance(frames, np.ndarray) else str(type(frames))
