"""Pictures and arrays as what the model takes."""

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ._input_layout import InputLayout
from ._models import Transform

Array = npt.NDArray[Any]
Picture = Image.Image | Array
_TIFF = (".tif", ".tiff")
_DEEP = ("I", "F")  # modes of more than 8 bits
_ONE_IMAGE = ("MPO", "PSD")  # formats whose further frames are previews or layers of the first
_OF_16_BITS = ("PNG", "PPM")  # formats whose integers have 16 bits where Pillow keeps them in 32
_DARK = 1 / 16  # of white
_SIDE = 64  # of the pictures on which a transform is tried


def extensions() -> set[str]:
    """The endings of names of files that can be read."""
    Image.init()
    return {".npy"} | {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN or kind in _ONE_IMAGE}


def opened(path: Path) -> Picture:
    """A file's picture, or its array, channels first.

    Raises:
        ValueError: if it holds several pictures.
    """
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    tiff = path.suffix.lower() in _TIFF
    try:
        with Image.open(path) as file:
            pages = 1 if file.format in _ONE_IMAGE else getattr(file, "n_frames", 1)
            if pages == 1:
                file.load()
                return file
    except (OSError, ValueError) as error:  # Pillow reads no TIFF of many channels or of floats in colour
        if not tiff:
            raise
        return _tiff(path, f"{type(error).__name__}: {error}")
    if not tiff:
        raise ValueError(f"it has {pages} pages, and which one is meant is not known: save one picture in each file")
    return _tiff(path, f"it has {pages} pages")


def as_rgb(picture: Picture) -> Image.Image:
    """A picture as processors of language models take it: upright, RGB of 8 bits; deeper ones lose depth, not light.

    Raises:
        ValueError: if it is no picture of grey or colours, or its values are below black or above white.
    """
    if not isinstance(picture, Image.Image):
        raise ValueError(f"expected a picture of grey or colours, got an array of shape {np.shape(picture)}")
    if picture.mode in _DEEP or picture.mode.startswith("I;16"):
        picture = Image.fromarray((255 * _grey(picture)).round().astype(np.uint8))
    return ImageOps.exif_transpose(picture).convert("RGB")


def _tiff(path: Path, why: str) -> Array:
    """A TIFF file that is not one picture of few channels; pages are channels."""
    try:
        library: Any = importlib.import_module("tifffile")
    except ModuleNotFoundError as error:
        raise ValueError(f"{why}; TIFF files of many channels or pages need tifffile: pip install tifffile") from error
    with library.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError(f"it holds {len(file.series)} images: save one picture in each file")
        if file.pages[0].photometric.name == "YCBCR":  # which tifffile gives as they are, and nobody can tell from RGB
            raise ValueError(f"{why}, and its colours are YCbCr: save it as RGB")
        array, axes = file.series[0].asarray(), file.series[0].axes
    array = np.moveaxis(array, [axes.index("Y"), axes.index("X")], [-2, -1])
    return np.asarray(array.reshape(-1, *array.shape[-2:]))


@dataclass(frozen=True)
class Pictures:
    """How pictures become what the model takes.

    A picture of 8 bits is grey or RGB, as many channels as the model's first layer takes; what is transparent loses
    only its transparency. A deeper one keeps its depth: the transform gets floats in which white is what it takes
    for white.

    Attributes:
        transform: Preprocesses a picture; None: there is none.
        layout: What the model's first layer takes.
    """

    transform: Transform | None
    layout: InputLayout

    def ready(self, picture: Picture) -> Tensor:
        """The picture, preprocessed.

        Raises:
            TypeError: if a transform is missing.
            ValueError: if its values or channels are not such that the model can take them; the message says why.
        """
        if not isinstance(picture, Image.Image):
            return self._of_array(picture)
        if picture.mode in _DEEP or picture.mode.startswith("I;16"):
            return self._deep(_grey(picture))
        return self._transformed(self._in_mode(picture))

    def mask(self, mask: Any, picture: Picture | None, image: Tensor) -> Tensor:
        """A mask of a picture's pixels, or of the preprocessed image's, as one of the latter's.

        A picture's mask passes the picture's transform: it is where a white object on black becomes white.
        """
        found = torch.as_tensor(np.asarray(mask).copy())
        sides = tuple(image.shape[1:])
        own = () if picture is None else self.sides(picture)
        if found.shape[:1] == (1,) and found.dim() == len(sides) + 1:
            found = found[0]
        if isinstance(picture, Image.Image) and tuple(found.shape) == own:
            return self._transformed_mask(found.numpy() > 0)
        if tuple(found.shape) != sides:
            of = f" or, as the picture, {own}" if isinstance(picture, Image.Image) else ""
            raise ValueError(f"Expected a mask of shape {sides}, as the image{of}; got {tuple(found.shape)}.")
        return found > 0

    def sides(self, picture: Picture) -> tuple[int, ...]:
        """Its height and width; of an array as many axes as the model takes."""
        return picture.size[::-1] if isinstance(picture, Image.Image) else picture.shape[-(self.layout.axes or 2) :]

    def _in_mode(self, picture: Image.Image) -> Image.Image:
        if "transparency" in picture.info:
            picture = picture.convert("RGBA")
        channels, bands = self.layout.channels, len(picture.getbands())
        if channels in (None, 1, 3):
            return picture.convert("L" if channels == 1 else "RGB")
        if bands != channels:
            raise ValueError(f"it has {bands} channels ({picture.mode}), and the model's first layer takes {channels}")
        return picture

    def _transformed(self, picture: Any) -> Tensor:
        if self.transform is None:
            raise TypeError("Expected tensors, as no transform is known; got a PIL image.")
        made: Any = self.transform(picture)
        if isinstance(made, Mapping):  # of a processor of transformers
            made = made.get("pixel_values", made.get("image"))
            made = made[0] if made is not None and len(made) == 1 else made
        try:
            return torch.as_tensor(made)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"Expected a tensor {self.layout} from the transform, got {type(made)}.") from error

    def _of_array(self, array: Array) -> Tensor:
        axes, channels = self.layout.axes or 2, self.layout.channels
        values = torch.as_tensor(array) if array.dtype.kind not in "iu" else torch.as_tensor(_scaled(array))
        values = values[None] if values.dim() == axes else values
        if values.dim() != axes + 1 or (channels is not None and len(values) not in (1 if axes == 2 else 0, channels)):
            raise ValueError(f"Expected an array {self.layout}, channels first; got shape {tuple(array.shape)}")
        if axes == 2 and len(values) == 1 and channels == 3:
            values = values.expand(3, -1, -1)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return values if self.transform is None else self._transformed(values)

    def _deep(self, grey: Array) -> Tensor:
        if self._way is None:
            raise ValueError(
                "it has more than 8 bits, and the transform takes only 8-bit pictures: use one that takes tensors "
                "(torchvision.transforms.v2, without ToTensor), or pass a dataset of tensors"
            )
        if grey.max() < _DARK:
            warnings.warn(
                "A picture of more than 8 bits is nearly black, as its largest value is less than a sixteenth of its "
                "type's: if its white is lower, as 4095 of 12 bits, multiply in the transform, or save it scaled.",
                stacklevel=2,
            )
        as_tensor, white = self._way
        return self._floats(grey * np.float32(white), as_tensor)

    @cached_property
    def _way(self) -> tuple[bool, float] | None:
        """Whether the transform takes floats as a tensor or as a picture, and what it takes for white.

        Black and white of floats must become what black and white of 8 bits become.
        """
        plain = [self._transformed(self._in_mode(Image.new("L", (_SIDE, _SIDE), value))) for value in (0, 255)]
        for as_tensor, white in _WAYS:
            deep = (np.full((_SIDE, _SIDE), value, np.float32) for value in (0, white))
            try:
                pairs = [(a, self._floats(b, as_tensor)) for a, b in zip(plain, deep, strict=True)]
                if all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in pairs):
                    return as_tensor, white
            except Exception:  # it does not take this
                continue
        return None

    def _floats(self, grey: Array, as_tensor: bool) -> Tensor:
        channels = 1 if self.layout.channels == 1 else 3
        if as_tensor:
            return self._transformed(torch.as_tensor(grey).expand(channels, -1, -1))
        image = self._transformed(Image.fromarray(grey))
        return image.expand(channels, -1, -1) if len(image) == 1 else image

    def _transformed_mask(self, mask: Array) -> Tensor:
        size = mask.shape[::-1]
        pictures = [Image.new("L", size, 0), Image.new("L", size, 255), Image.fromarray(mask.astype(np.uint8) * 255)]
        black, white, object_ = (self._transformed(self._in_mode(one)) for one in pictures)
        return ((object_ - black).abs() > (white - object_).abs()).any(0)


_WAYS = [(as_tensor, white) for white in (1, 255) for as_tensor in (True, False)]


def _grey(picture: Image.Image) -> Array:
    """A picture's floats, white is 1.

    Raises:
        ValueError: if its values are below black or above white.
    """
    values = np.asarray(picture)
    if picture.mode.startswith("I;16") or picture.format in _OF_16_BITS:
        values = values / np.float32(65535)
    elif picture.mode == "I":
        values = values / np.iinfo(np.int32).max
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Expected a picture of floats from 0 to 1 or of positive integers, got mode {picture.mode} from "
            f"{np.asarray(picture).min()} to {np.asarray(picture).max()}: scale it, or pass a dataset of tensors"
        )
    return values.astype(np.float32)


def _scaled(array: Array) -> Array:
    """Integers divided by their type's largest."""
    return np.asarray(array / np.float32(np.iinfo(array.dtype).max), np.float32)
