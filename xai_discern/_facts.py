"""What files of results say of how they were made."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

SCHEMA = "xai-discern/explanation/1"
_VERSIONS = ("xai-discern", "torch", "captum")


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}


def shown(row: Mapping[str, Any]) -> str:
    """How much a row of `top` says of its class or text, for people."""
    if "probability" in row:
        return f"{row['probability']:.1%}"
    return f"{row.get('similarity', row.get('output')):.3g}"
