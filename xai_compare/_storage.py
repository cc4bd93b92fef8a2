"""The files of a run, below one folder of any file system that fsspec knows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

PART = ".part"  # ends the names of files that are being written


class Storage:
    """Files below a folder, by their names in it, such as "run.json" and "gallery/part-0.npz".

    Each is written whole or not at all: on a disk under another name that is then changed, elsewhere in one request.

    Args:
        where: A path, or a URL, such as s3://BUCKET/RUN.

    Attributes:
        where: The same, for messages.
        local: The folder's path; None if it is not on a disk.

    Raises:
        ValueError: if there is no such file system, or the library for it is not installed.
    """

    def __init__(self, where: str | Path) -> None:
        self.where = str(where)
        try:
            fs, root = url_to_fs(self.where) if "://" in self.where else (LocalFileSystem(), self.where)
        except (ImportError, ValueError) as error:
            raise ValueError(f"The folder {self.where} cannot be reached: {error}.") from error
        self.fs, self.root = fs, str(root).rstrip("/") or "/"
        self.local = Path(self.root) if isinstance(fs, LocalFileSystem) else None

    def place(self, name: str) -> str:
        """Where a file is, for messages."""
        return f"{self.where.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Is there this file?"""
        self._forget(name)
        return bool(self.fs.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        """What a file holds.

        Raises:
            OSError: if it cannot be read.
        """
        self._forget(name)
        found: bytes = self.fs.cat_file(self._path(name))
        return found

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file in place of what is there.

        Raises:
            OSError: if it cannot be written.
        """
        content = content.encode() if isinstance(content, str) else content
        if self.local is None:
            self.fs.pipe_file(self._path(name), content)
            return
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to be written piece by piece; what is there is replaced at the end."""
        if self.local is None:
            with self.fs.open(self._path(name), "wb") as file:
                yield file
            return
        final = self.local / name
        part = final.with_name(f".{final.name}-{os.getpid()}{PART}")
        final.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
        part.replace(final)

    def create(self, name: str, content: str) -> None:
        """Write a file that is not there yet.

        Raises:
            FileExistsError: if it is, as far as the file system can tell.
        """
        self.fs.pipe_file(self._path(name), content.encode(), mode="create")

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        self._forget(name)
        if self.fs.exists(self._path(name)):
            self.fs.rm_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder below this one, in order; none if there is no such folder."""
        self._forget(f"{folder}/")
        try:
            found = self.fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in found if not (name := str(path).rsplit("/", 1)[-1]).startswith("."))

    def all_names(self) -> list[str]:
        """The names of all files in this folder and those below."""
        self.fs.invalidate_cache()
        return [str(path)[len(self.root) :].lstrip("/") for path in self.fs.find(self.root)]

    def modified(self, name: str) -> datetime:
        """When a file was written, by the clock of the file system."""
        self._forget(name)
        found: datetime = self.fs.modified(self._path(name))
        return found

    def for_arrow(self, name: str) -> tuple[str, Any]:
        """The path of a file or folder, and the file system, as pyarrow and pandas take them."""
        self._forget(f"{name}/")
        return self._path(name), self.fs

    def _path(self, name: str) -> str:
        return str(self.local / name) if self.local is not None else f"{self.root}/{name}".rstrip("/")

    def _forget(self, name: str) -> None:
        """What others may have changed since."""
        if self.local is None:
            self.fs.invalidate_cache(self._path(name).rsplit("/", 1)[0])
