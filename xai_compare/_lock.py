"""One command at a time works on a run's folder."""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ._storage import PART, Storage

_HOLDER, LOCK = f".holder.json{PART}", ".run.lock"
_LEASE, _RENEWAL = 60.0, 15.0  # seconds after which a holder that is not heard of is gone; between two signs of life
_SETTLING = 1.0  # seconds in which of two that begin at once one is the last to write


class RunningError(ValueError):
    """Another process works on the run."""


@contextlib.contextmanager
def locked(files: Storage, command: str) -> Iterator[None]:
    """Inside, no other command works on the folder.

    On a disk, the lock ends with the process, also if it is killed; elsewhere, a minute after its last sign of life.

    Raises:
        RunningError: if another command does.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    about = f"process {os.getpid()} on {platform.node()} since {now}" + f" ({command})" * bool(command)
    with _on_disk(files.local, files, about) if files.local is not None else _elsewhere(files, about):
        yield


@contextlib.contextmanager
def _on_disk(folder: Path, files: Storage, about: str) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        said = files.read(_HOLDER).decode() if files.exists(_HOLDER) else "another process"
        raise _running(files, said) from None
    try:
        files.write(_HOLDER, about)
        yield
    finally:
        files.remove(_HOLDER)
        lock.release()
        if not files.exists("run.json"):  # the run was refused: nothing is left of it
            Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def _elsewhere(files: Storage, about: str) -> Iterator[None]:
    mine = json.dumps({"about": about, "id": uuid.uuid4().hex})
    _take(files, mine)
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(files, mine, done), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        if _holder(files) == mine:
            files.remove(_HOLDER)


def _take(files: Storage, mine: str) -> None:
    """Write that this process holds the folder, unless another one does."""
    before = _holder(files)
    if before is None:
        with contextlib.suppress(OSError):  # another one was faster, which is seen below
            files.create(_HOLDER, mine)
    else:
        age = _age(files)
        if age < _LEASE:
            seen = f"{json.loads(before)['about']}, which gave a sign of life {age:.0f} s ago"
            raise _running(files, seen, f" If it was killed, the folder is free {_LEASE:.0f} s after that.")
        files.write(_HOLDER, mine)
    time.sleep(_SETTLING)
    now = _holder(files)
    if now != mine:
        raise _running(files, json.loads(now)["about"] if now else "another process")


def _renew(files: Storage, mine: str, done: threading.Event) -> None:
    while not done.wait(_RENEWAL):
        with contextlib.suppress(OSError):  # of the network; the next sign of life may arrive
            if _holder(files) != mine:
                return
            files.write(_HOLDER, mine)


def _holder(files: Storage) -> str | None:
    try:
        return files.read(_HOLDER).decode()
    except FileNotFoundError:
        return None


def _age(files: Storage) -> float:
    """Seconds since the holder's last sign of life, by one clock: that of the file system."""
    probe = f".probe-{uuid.uuid4().hex}{PART}"
    files.write(probe, "")
    try:
        return (files.modified(probe) - files.modified(_HOLDER)).total_seconds()
    except FileNotFoundError:  # gone just now
        return _LEASE
    finally:
        files.remove(probe)


def _running(files: Storage, who: str, advice: str = "") -> RunningError:
    return RunningError(
        f"{files.where} is being written by {who}. Wait until it is done, or choose another folder with --out.{advice}"
    )
