"""All tasks, by name."""

from collections.abc import Iterable

from . import analytic, digits, mosaics, tetrominoes, texts, treebank
from .task import Task

_ALL = [*analytic.TASKS, *digits.TASKS, *mosaics.TASKS, *texts.TASKS, *tetrominoes.TASKS, *treebank.TASKS]


def tasks_named(wanted: str | Iterable[str] = "all") -> list[Task]:
    """The requested tasks, in the order of the page.

    Args:
        wanted: Names of tasks, their beginnings ("tetromino-xor"), or groups of tasks, as a list or comma-separated;
            "all": those that need no data.

    Raises:
        TypeError: if it is no name.
        ValueError: if a name is unknown, or there is none.

    Example:
        >>> from xai_compare.known_answers import tasks_named
        >>> [task.name for task in tasks_named("analytic")]
        ['one-patch', 'difference']
    """
    names = wanted.split(",") if isinstance(wanted, str) else list(wanted) if isinstance(wanted, Iterable) else [wanted]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"Expected `tasks` to be names of tasks, or 'all', got {wanted!r}.")
    names = [name.strip() for name in names if name.strip()]
    known = {name for task in _ALL for name in (task.group, *_beginnings(task.name))}
    unknown = [repr(name) for name in names if name not in {"all", *known}]
    if unknown or not names:
        short = {name for name in known if not name.startswith("tetromino-") or name.count("-") == 1}
        said = f"Unknown task {', '.join(unknown)}" if unknown else "Expected at least one task, got none"
        raise ValueError(f"{said}. Tasks and groups of tasks: all, {', '.join(sorted(short))}.")
    return [
        task for task in _ALL if {task.group, *_beginnings(task.name)} & {*names} or ("all" in names and not task.note)
    ]


def _beginnings(name: str) -> list[str]:
    """The name, and of tetrominoes its beginnings: "tetromino", "tetromino-xor", "tetromino-xor-white"."""
    parts = name.split("-") if name.startswith("tetromino-") else [name]
    return ["-".join(parts[: count + 1]) for count in range(len(parts))]
