"""One process at a time writes into a run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from mnft.errors import CheckpointError
from mnft.runs.folder import RunFolder

_NAME = ".lock"
_log = logging.getLogger(__name__)


@contextmanager
def lock_run(run: RunFolder) -> Iterator[None]:
    """Keep other processes from training in this run; the end of the process frees it too.

    Raises:
        CheckpointError: another process trains in it.
    """
    lock = FileLock(run.path / _NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"{run.path}: another process is training in it",
            hint="wait for its end, or start a run with another name",
        ) from error
    except (OSError, NotImplementedError) as error:
        # Some network file systems have no locks; a read-only folder says so at the first write.
        _log.info("%s: cannot be locked: %s", run.path, error)
    try:
        yield
    finally:
        lock.release()
