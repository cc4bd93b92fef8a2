"""Public names of a package that are imported when they are asked for."""

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, where: Mapping[str, str], extra: str = "") -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names lie in its modules, and `__version__` (PEP 562).

    Args:
        package: The package's name.
        where: For each name the module that has it, such as ".cdam".
        extra: What installs the libraries that they need.
    """

    def get(name: str) -> Any:
        if name == "__version__":
            return importlib.metadata.version("xai-discern")
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(where[name], package)
        except ModuleNotFoundError as error:
            if not extra:
                raise
            raise ModuleNotFoundError(f"{package} needs {error.name}: pip install '{extra}'.") from error
        found = getattr(module, name)
        setattr(importlib.import_module(package), name, found)
        return found

    return get
