"""Names that a user types, and what they stand for."""

import difflib
import importlib.metadata
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def slug(name: str) -> str:
    """A name in lower case with hyphens: "Soft Average Drop" and "soft_average_drop" as "soft-average-drop"."""
    return re.sub(r"[^a-z0-9+.]+", "-", name.strip().lower()).strip("-")


def by_slug(names: Iterable[str]) -> dict[str, str]:
    """Names by their slugs.

    Raises:
        TypeError: if a name is no text.
        ValueError: if two names have the same slug, or a name has none.
    """
    found: dict[str, str] = {}
    for given in names:
        if not isinstance(given, str):
            raise TypeError(f"Expected names as text, got {given!r}.")
        name = given.strip()
        other = found.setdefault(slug(name), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} are the same name, {slug(name)!r}, once normalised: rename one.")
    nameless = next((given for name, given in found.items() if not re.search("[a-z0-9]", name)), None)
    if nameless is not None:  # files are called by names, so ".." must be none
        raise ValueError(f"Expected names with a letter from a to z or a digit, got {nameless!r}: rename it.")
    return found


def distinct(titles: Mapping[str, str]) -> dict[str, str]:
    """Titles by name; those of several names with their name."""
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    return {name: f"{title} ({name})" if title in shared else title for name, title in titles.items()}


def parse_aliases(wanted: Iterable[str]) -> dict[str, str]:
    """Requested names, as "ig" or with an alias as "ig20=ig", mapped to known names.

    Raises:
        ValueError: if a name stands for two things, or two names are the same once normalised.
    """
    wanted = list(wanted)
    by_slug(text.partition("=")[0] for text in wanted)
    names: dict[str, str] = {}
    for text in wanted:
        own, equals, of = text.partition("=")
        name, stands_for = slug(own), slug(of if equals else own)
        if names.setdefault(name, stands_for) != stands_for:
            raise ValueError(f"{name!r} stands for {names[name]!r} and for {stands_for!r}: give one another name.")
    return names


def select(kind: str, wanted: Iterable[str], known: Mapping[str, T]) -> dict[str, T]:
    """The known objects of the wanted names, each once, in the order given.

    Raises:
        ValueError: if a name is unknown; the message suggests similar ones.
    """
    names = parse_aliases(wanted)
    unknown = list(dict.fromkeys(name for name in names.values() if name not in known))
    if unknown:
        hints = [f"{name!r}{close_names(name, known)}" for name in unknown]
        raise ValueError(
            f"Unknown {kind}{'s' * (len(unknown) > 1)} {', '.join(hints)}. `xai-compare --list` names all {len(known)}."
        )
    if not names:
        raise ValueError(f"Expected at least one {kind}, got none. `xai-compare --list` names all {len(known)}.")
    return {name: known[of] for name, of in names.items()}


def close_names(name: str, known: Iterable[str]) -> str:
    """Known names that may have been meant, in parentheses; nothing if there are none."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = list(dict.fromkeys([*near, *(one for one in known if name and name in one)]))[:3]
    return f" (close: {', '.join(near)})" if near else ""


def from_entry_points(group: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """What installed distributions declare as entry points of a group.

    Args:
        group: The group.
        known: What is known already, by name.

    Raises:
        ValueError: if one of them cannot be loaded or has the name of something else; the message names its
            distribution.
    """
    found: dict[str, Any] = {}
    entries = importlib.metadata.entry_points(group=group)
    by_slug(entry.name for entry in entries)
    for entry in entries:
        name, distribution = slug(entry.name), entry.dist.name if entry.dist is not None else "an unknown distribution"
        try:
            found[name] = entry.load()
        except Exception as error:
            raise ValueError(
                f"{entry.name!r}, which {distribution} offers to xai-compare as {entry.value}, cannot be loaded: "
                f"{type(error).__name__}: {error}. Repair or remove that distribution."
            ) from error
        if known.get(name, found[name]) is not found[name]:
            raise ValueError(
                f"{entry.name!r}, which {distribution} offers to xai-compare as {entry.value}, is also the name of "
                "another one here: rename the entry point, or remove that distribution."
            )
    return found
