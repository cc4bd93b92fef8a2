"""Docstrings of this project as reStructuredText: their indented formulas are literal blocks."""

from typing import Any

SECTIONS = ("Args:", "Returns:", "Raises:", "Example:", "Attributes:", "Yields:")


def as_literal_blocks(lines: list[str]) -> list[str]:
    """Announces each indented block that follows a line of text as code, up to the first section such as `Args:`."""
    found: list[str] = []
    for i, line in enumerate(lines):
        if line.rstrip() in SECTIONS:
            return found + lines[i:]
        starts = line.startswith("    ") and i > 0 and not lines[i - 1].strip()
        if starts and not any(part.startswith("    ") for part in found[-2:]):
            found += ["::", ""]
        found.append(line)
    return found


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_literal_blocks(lines)


def setup(app: Any) -> dict[str, bool]:
    """Before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
