"""Pictures that users of the page upload: what is accepted."""

import io
import warnings
from dataclasses import dataclass
from pathlib import PurePath

from PIL import Image

BYTES = 10 * 2**20
PIXELS = 40_000_000
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_ACCEPTED = f"Expected a PNG, JPEG or WebP picture of at most {BYTES >> 20} MB and {PIXELS // 10**6} megapixels"


@dataclass(frozen=True)
class Upload:
    """A picture that was accepted, as it came.

    Attributes:
        name: Of its file.
        data: Its bytes.
    """

    name: str
    data: bytes

    @property
    def stem(self) -> str:
        """The name without its ending; such that files can be called so."""
        plain = "".join(one if one.isalnum() or one in "-_" else "-" for one in PurePath(self.name).stem)
        return plain.strip("-")[:60] or "picture"

    def opened(self) -> Image.Image:
        """The picture."""
        with warnings.catch_warnings(), Image.open(io.BytesIO(self.data), formats=_FORMATS) as file:
            warnings.simplefilter("ignore")  # of damaged metadata
            file.load()
            return file


def accepted(name: str, data: bytes) -> Upload:
    """A picture that can be explained.

    Args:
        name: Of its file.
        data: Its bytes.

    Raises:
        ValueError: if it is too large, of another kind, animated or damaged.
    """
    if len(data) > BYTES:
        raise ValueError(f"{_ACCEPTED}; {name} has {len(data) / 2**20:.1f} MB.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are compared below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as file:  # reads no pixels yet
                (width, height), frames = file.size, 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{_ACCEPTED}; {name} has more.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{_ACCEPTED}; {name} is none of these.") from error
    if width * height > PIXELS:
        raise ValueError(f"{_ACCEPTED}; {name} has {width} x {height} pixels.")
    if frames != 1:
        raise ValueError(f"{_ACCEPTED}; {name} has {frames} pictures, and which one is meant is not known.")
    found = Upload(name, data)
    try:
        found.opened()
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged: {error}.") from error
    return found
