"""What the cells of a table of samples say: labels and boxes."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def is_empty(cell: Any) -> bool:
    """Whether nothing is in a cell, as None, NaN or a blank text."""
    return cell is None or (isinstance(cell, float) and np.isnan(cell)) or (isinstance(cell, str) and not cell.strip())


def labels_in(cell: Any) -> list[str]:
    """The labels in a cell, as text: a list, or a text in which several are divided by | or ; or written as a list."""
    if is_empty(cell):
        return []
    if isinstance(cell, str):
        listed = cell.strip().startswith("[") and cell.strip().endswith("]")
        parts = json.loads(cell) if listed and _is_json(cell) else re.split(r"[|;]", cell)
    else:
        parts = list(np.ravel(cell))
    return [_text(part) for part in parts if not is_empty(part)]


def box_in(cell: Any) -> tuple[float, float, float, float]:
    """The box in a cell: left, top, right and bottom in pixels.

    Raises:
        ValueError: if the cell holds something else.
    """
    try:
        parts = re.split(r"[\s,;]+", cell.strip().strip("[]()").strip()) if isinstance(cell, str) else cell
        left, top, right, bottom = (float(part) for part in parts)
    except (TypeError, ValueError):
        left = top = right = bottom = 0.0
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(
            f"Expected a box of four numbers, left, top, right and bottom in pixels, left < right and top < bottom; "
            f"got {cell!r}"
        )
    return left, top, right, bottom


def box_mask(box: Sequence[float], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width) of the pixels whose centres are in a box.

    Raises:
        ValueError: if the box lies beyond the image, or between two centres.
    """
    left, top, right, bottom = box
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    mask = ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))
    if right > width or bottom > height or not mask.any():
        raise ValueError(f"Expected a box inside the image, {width} wide and {height} high; got {tuple(box)}")
    return mask


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _text(part: Any) -> str:
    """A label as text; a whole number without decimals, as it becomes one where cells of a column are empty."""
    if isinstance(part, bool | np.bool_):
        return str(int(part))
    if isinstance(part, float | np.floating) and float(part).is_integer():
        return str(int(part))
    return str(part).strip()
