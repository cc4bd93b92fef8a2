"""Sample pictures of the page: what comes with the package, and photographs of scikit-image if that is installed."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ._app_picture import Upload

_SCENES = 4
_SIDE = 240  # pixels of a scene; the model reads 48
_PHOTOGRAPHS = {"chelsea.png": "cat", "coffee.png": "coffee", "astronaut.png": "astronaut", "rocket.jpg": "rocket"}


def samples(models: Sequence[str]) -> list[Upload]:
    """Scenes of digits for the bundled model, photographs for others."""
    found = _scenes() if "digits" in models else []
    return found + (_photographs() if set(models) - {"digits"} else [])


def _scenes() -> list[Upload]:
    from xai_compare.digit_scenes import make_scenes

    made = []
    for digits in (2, 3):
        scenes = make_scenes(_SCENES // 2, digits=digits, seed=4)
        for image, labels in zip(scenes.images, scenes.labels.tolist(), strict=True):
            name = ", ".join(map(str, labels[:-1])) + f" and {labels[-1]}"
            pixels = (255 * image[0].clamp(0, 1)).round().numpy().astype(np.uint8)
            made.append(_upload(name, Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)))
    return made


def _photographs() -> list[Upload]:
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "data"
    files = [(folder / file, name) for file, name in _PHOTOGRAPHS.items()]
    return [_upload(name, Image.open(file).convert("RGB")) for file, name in files if file.is_file()]


def _upload(name: str, picture: Image.Image) -> Upload:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return Upload(name, held.getvalue())
