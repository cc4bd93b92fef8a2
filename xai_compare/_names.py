"""Names that a user types, and what they stand for."""

import difflib
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def spelled(name: str) -> str:
    """A name in lower case with hyphens: "Soft Average Drop" and "soft_average_drop" as "soft-average-drop"."""
    return re.sub(r"[^a-z0-9+.]+", "-", name.strip().lower()).strip("-")


def chosen(kind: str, wanted: Iterable[str], known: Mapping[str, T]) -> dict[str, T]:
    """What is known by the wanted names, each once, in their order.

    Raises:
        ValueError: if a name is not known; the message names the close ones.
    """
    names = list(dict.fromkeys(spelled(name) for name in wanted))
    unknown = [name for name in names if name not in known]
    if unknown:
        hints = [f"{name!r}{_close(name, known)}" for name in unknown]
        raise ValueError(
            f"Unknown {kind}{'s' * (len(unknown) > 1)} {', '.join(hints)}. `xai-compare --list` names all {len(known)}."
        )
    if not names:
        raise ValueError(f"Expected at least one {kind}, got none. `xai-compare --list` names all {len(known)}.")
    return {name: known[name] for name in names}


def _close(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = list(dict.fromkeys([*near, *(one for one in known if name and name in one)]))[:3]
    return f" (close: {', '.join(near)})" if near else ""


def from_entry_points(group: str) -> dict[str, Any]:
    """What other distributions offer under the name of a group.

    Raises:
        ValueError: if one of them cannot be loaded; the message names its distribution.
    """
    found = {}
    for entry in importlib.metadata.entry_points(group=group):
        try:
            found[spelled(entry.name)] = entry.load()
        except Exception as error:
            distribution = entry.dist.name if entry.dist is not None else "an unknown distribution"
            raise ValueError(
                f"{entry.name!r}, which {distribution} offers to xai-compare as {entry.value}, cannot be loaded: "
                f"{type(error).__name__}: {error}. Repair or remove that distribution."
            ) from error
    return found
