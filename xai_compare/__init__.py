"""Compare explanation methods by many scores on a model and data: resumable, on many processes, with a report."""

import importlib
import importlib.metadata
import typing

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


def __getattr__(name: str) -> typing.Any:
    """A public name, imported from where it is; or the version."""
    if name == "__version__":
        return importlib.metadata.version("xai-discern")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(importlib.import_module(_WHERE[name], __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"xai_compare needs {error.name}: pip install 'xai-discern[compare]'.") from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """All names."""
    return sorted({*globals(), *_WHERE})


__all__ = [*_WHERE]
