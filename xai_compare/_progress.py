"""Bars that show how far work is."""

import sys
from typing import Any

from tqdm.auto import tqdm


def progress(*given: Any, **options: Any) -> Any:
    """A bar; where a log is written in place of a terminal, with few lines, and none for what takes less than 10 s."""
    watched = sys.stderr.isatty()
    quiet = {"mininterval": 0.1, "leave": False} if watched else {"mininterval": 30, "leave": True, "delay": 10}
    return tqdm(*given, **({"smoothing": 0.1} | quiet | options))
