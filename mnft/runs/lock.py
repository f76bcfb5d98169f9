"""The lock on a run folder: one process at a time writes, as long as the folder is the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mnft.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

_open: set[int] = set()


class RunLock:
    """The right to write into a run folder, which lasts until the process ends, however it does.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None  # the open folder; Windows opens none

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            CheckpointError: another process has it.
        """
        if sys.platform == "win32":
            return
        self._handle = os.open(self._path, os.O_RDONLY)
        _open.add(self._handle)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise CheckpointError(
                f"{self._path}: another process is training this run",
                hint="wait for it, or stop it first",
            ) from error
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._handle is not None:
            _open.discard(self._handle)
            os.close(self._handle)
            self._handle = None

    def check(self) -> None:
        """Refuse to write into a folder that is gone, or that is another one by now.

        Raises:
            CheckpointError: it was removed, moved or replaced.
        """
        if self._handle is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._handle), self._path.stat())
        except OSError:
            same = False
        if not same:
            raise CheckpointError(
                f"{self._path}: the run folder was removed or replaced while the run was under way",
                hint="nothing more was written; start the run again",
            )


@contextmanager
def locked(path: Path) -> Iterator[RunLock]:
    """Hold the lock on a run folder inside the block.

    Raises:
        CheckpointError: another process has it.
    """
    lock = RunLock(path)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def waiting(path: Path) -> Iterator[int]:
    """Hold the lock on a file inside the block, after whoever holds it now.

    Gives the descriptor of the open file, -1 where the system has no locks.
    """
    if sys.platform == "win32":
        yield -1
        return
    handle = os.open(path, os.O_RDWR)
    _open.add(handle)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        _open.discard(handle)
        os.close(handle)


def _close_in_child() -> None:
    # A loading process that outlives a killed training must not keep its lock.
    for handle in _open:
        os.close(handle)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
