"""Compare explanation methods by many scores on a model and data: resumable, on many processes, with a report."""

import typing

from adapters import _lazy

if typing.TYPE_CHECKING:
    from ._compare import compare as compare
    from ._comparison import Comparison as Comparison
    from ._methods import methods_named as methods_named
    from ._settings import METHODS as METHODS
    from ._settings import METRICS as METRICS
    from ._settings import Settings as Settings
    from .known_answers import arena as arena

_WHERE = {
    "Comparison": "._comparison",
    "METHODS": "._settings",
    "METRICS": "._settings",
    "Settings": "._settings",
    "arena": ".known_answers",
    "compare": "._compare",
    "methods_named": "._methods",
}
"""Imported when they are asked for, so that the command answers at once."""


__getattr__ = _lazy.lazy_names(__name__, _WHERE, extra="xai-discern[compare]")


def __dir__() -> list[str]:
    """All names."""
    return sorted({*globals(), *_WHERE})


__all__ = [*_WHERE]
