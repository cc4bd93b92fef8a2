"""What the page shows of a result: HTML in which app.js shows the values of maps under the pointer."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, Template
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from captum_ext.signed_overlay import rgb_of, signed_overlay

from ._app_session import Explained
from ._facts import shown
from ._image_maps import RANDOM

_SIDE = 224  # pixels; smaller pictures are enlarged, so that maps over them are smooth


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("xai_discern").joinpath("app.html").read_text("utf-8"))


def result_html(explained: Explained) -> str:
    """What the model says, and a row of maps for each method."""
    maps = explained.maps
    image = _enlarged(maps.image if len(maps.image) in (1, 3) else maps.image.mean(0, keepdim=True))
    rows = [
        {
            "title": title,
            "about": maps.methods[key].about,
            "scale": f"{maps.scales[key]:.3g}",
            "maps": _maps(image, maps.maps[key], maps.scales[key], [one.title for one in maps.asked]),
        }
        for key, title in maps.titles.items()
    ]
    failed = {explained.seen.loaded.methods[key].title or key: why for key, why in explained.failed.items()}
    return _template().render(
        part="result",
        random=RANDOM if maps.random else "",
        top=_bars(maps.top),
        seen=_source(rgb_of(image)),
        size=f"{maps.image.shape[2]} \u00d7 {maps.image.shape[1]} pixels",
        rows=rows,
        failed=failed,
        notes=maps.notes,
    )


def _maps(image: Tensor, maps: Tensor, scale: float, titles: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "title": title,
            "source": _source(picture),
            "rows": values.shape[0],
            "columns": values.shape[1],
            "values": base64.b64encode(values.numpy().astype("<f4").tobytes()).decode(),
            "scale": repr(scale),
        }
        for title, values, picture in zip(titles, maps, signed_overlay(image, maps, scale), strict=True)
    ]


def checks_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts with their reasons, and the numbers."""
    return _template().render(part="checks", rows=rows)


def message_html(text: str, *, error: bool = False) -> str:
    """A line about what happened."""
    return _template().render(part="message", text=text, error=error)


def _bars(top: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of what the model says; the bar of a similarity is its positive part."""
    values = [row.get("probability", row.get("similarity")) for row in top]
    return [
        {"name": row["name"], "said": shown(row), "width": 0 if value is None else 100 * min(1.0, max(0.0, value))}
        for row, value in zip(top, values, strict=True)
    ]


def _enlarged(image: Tensor) -> Tensor:
    times = max(1, round(_SIDE / min(image.shape[1:])))
    return F.interpolate(image[None], scale_factor=times, mode="nearest")[0] if times > 1 else image


def _source(picture: Any) -> str:
    """(height, width, 3) in [0, 1] as a data URL."""
    held = io.BytesIO()
    Image.fromarray((255 * np.asarray(picture)).round().astype(np.uint8)).save(held, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
