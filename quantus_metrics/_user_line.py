"""Warnings at the line of the user's that led to them."""

import sys
import warnings

_OURS = ("quantus_metrics", "xai_compare", "captum_ext", "adapters", "quantus", "torch", "contextlib", "functools")


def tell(message: str) -> None:
    """Warn at the first line outside these packages, of those that led here."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001 # as warnings itself does
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
