"""The processes that share a run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")
_PATIENCE = timedelta(days=30)  # a share may take longer than another; a process that dies is noticed at once


class WorkerError(RuntimeError):
    """Another process of the run has exited."""


class StoppedError(BaseException):
    """The process was asked to end; not an Exception, so that the code of a method does not catch it."""


class Workers:
    """This process and the others of the run, from Accelerate.

    Attributes:
        rank: The index of this process.
        count: The number of processes.
        device: The device of this process, unless the user names another.
    """

    def __init__(self, device: str) -> None:
        on_cpu = torch.device(device).type == "cpu" if device else not torch.accelerator.is_available()
        self._state = PartialState(cpu=on_cpu, timeout=_PATIENCE)  # by default, CPU processes are not told apart
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        shared = self.count > 1 and ":" not in device  # "cuda" is another GPU for each process
        self.device = str(self._state.device) if shared or not device else device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prepares and reports."""
        return self.rank == 0

    def from_main(self, value: T) -> T:
        """The main process's value, in all of them."""
        if self.count == 1:
            return value
        with _noticing():
            box = [value]
            broadcast_object_list(box, from_process=0)
            return box[0]

    def wait(self) -> None:
        """Wait for all others.

        Raises:
            WorkerError: if one of them has exited.
        """
        if self.count > 1:
            with _noticing():
                self._state.wait_for_everyone()


def is_main() -> bool:
    """Whether this is the process that prints."""
    return bool(PartialState().is_main_process)


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(f"another process of the run has exited ({str(error).splitlines()[0][:200]})") from error


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise StoppedError on SIGTERM, so that the finished results can be reported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
