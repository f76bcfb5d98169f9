"""Who writes into a run folder: one process at a time, as long as the folder is the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnft.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

_open: set[int] = set()


class Claim:
    """The right to write into a run folder.

    Args:
        path: of the folder.
        handle: the open folder; None where the system cannot tell folders apart.
    """

    def __init__(self, path: Path, handle: int | None) -> None:
        self._path = path
        self._handle = handle

    def check(self) -> None:
        """Refuse to go on in a folder that is gone, or that is another one by now.

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
def claimed(path: Path) -> Iterator[Claim]:
    """Claim a run folder until the end, however the process ends.

    Raises:
        CheckpointError: another process has it.
    """
    if sys.platform == "win32":  # which opens no folder
        yield Claim(path, None)
        return
    handle = os.open(path, os.O_RDONLY)
    _open.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{path}: another process is training this run",
                hint="wait for it, or stop it first",
            ) from error
        except OSError:  # a file system without locks
            pass
        yield Claim(path, handle)
    finally:
        _open.discard(handle)
        os.close(handle)


def _close_in_child() -> None:
    # A loading process that outlives a killed training must not keep its claim.
    for handle in _open:
        os.close(handle)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
