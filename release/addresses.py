"""Writes the project's address into README.md and pyproject.toml, so that a package index shows links that work.

    python release/addresses.py FOLDER https://github.com/OWNER/xai-discern v0.1.0

FOLDER is a copy that is built, not the one that is worked in: links between files of the repository become links to
these files at that tag, and the package gets its project URLs.
"""

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")
_BEFORE = "[project.optional-dependencies]"


def absolute(text: str, repository: str, tag: str) -> str:
    """Markdown with its links to files made absolute, those of pictures to what they hold."""

    def written(match: re.Match[str]) -> str:
        picture, words, path = match.groups()
        return f"{picture}{words}({repository}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return _LINK.sub(written, text)


def with_urls(project: str, repository: str, tag: str) -> str:
    """pyproject.toml with the project's URLs.

    Raises:
        ValueError: if it has some, or no optional dependencies, before which they are written.
    """
    if "[project.urls]" in project or project.count(_BEFORE) != 1:
        raise ValueError(f"Expected pyproject.toml without [project.urls] and with one {_BEFORE}.")
    urls = {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{tag}/docs/index.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = "\n".join(f'{name} = "{url}"' for name, url in urls.items())
    return project.replace(_BEFORE, f"[project.urls]\n{lines}\n\n{_BEFORE}")


def main(folder: str, repository: str, tag: str) -> None:
    """Rewrite both files of a folder."""
    repository = repository.rstrip("/")
    for name, rewrite in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = Path(folder) / name
        path.write_text(rewrite(path.read_text("utf-8"), repository, tag), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
