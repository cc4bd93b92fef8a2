"""What files of results say of how they were made."""

import platform
from importlib.metadata import version

SCHEMA = "xai-discern/explanation/1"
_VERSIONS = ("xai-discern", "torch", "captum")


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}
