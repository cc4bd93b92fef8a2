"""The console command `xai-discern`."""

import importlib.metadata
import typing


def __getattr__(name: str) -> typing.Any:
    """The version."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.metadata.version("xai-discern")
