"""What files of results say of how they were made."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xai_compare._isolation import out_of_memory, said

SCHEMA = "xai-discern/explanation/1"
_VERSIONS = ("xai-discern", "torch", "captum")


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}


def write_facts(out: Path, model: Mapping[str, Any], **found: list[dict[str, Any]]) -> Path:
    """Write `explanation.json`, of what was found so far; where it is."""
    file = out / "explanation.json"
    facts = {"schema": SCHEMA, "model": model, **found, "versions": versions()}
    file.write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")
    return file


def plain(error: Exception) -> Exception:
    """An error of which the command says the message alone; what a model's own code raised says its type, too."""
    if isinstance(error, TypeError | ValueError | OSError | ImportError) or out_of_memory(error):
        return error
    return ValueError(said(error))


def shown(row: Mapping[str, Any]) -> str:
    """How much a row of `top` says of its class or text, for people."""
    if "probability" in row:
        return f"{row['probability']:.1%}"
    return f"{row.get('similarity', row.get('output')):.3g}"
