"""Bars that show how far work is."""

import sys
from typing import Any

from tqdm.auto import tqdm


def progress(*given: Any, **options: Any) -> Any:
    """A bar that is drawn at once; where a log is written in place of a terminal, with few lines."""
    watched = sys.stderr.isatty()
    return tqdm(*given, **({"mininterval": 0.1 if watched else 30, "smoothing": 0.1, "leave": not watched} | options))
