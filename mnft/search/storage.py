"""Optuna's storage: a journal that survives killed writers, or any URL; errors for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from mnft.errors import CheckpointError, ConfigError, MnftError, foreign
from mnft.runs.lock import waiting


class _JournalLock(JournalFileOpenLock):
    """A lock that the system takes back from a process that is killed.

    Optuna's lock is a link that a killed writer leaves for 30 seconds. A line that a full disk or a
    kill has cut would join the next one, and nobody could read the journal again: it is removed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._stack = ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        handle = self._stack.enter_context(waiting(self._path))
        if handle >= 0:
            _remove_cut_line(handle)
        return True

    def release(self) -> None:
        """Give it back."""
        self._stack.close()


def _remove_cut_line(handle: int) -> None:
    end = os.fstat(handle).st_size
    place, tail = end, b""
    while place and b"\n" not in tail:
        place = max(0, place - 4096)
        tail = os.pread(handle, end - place, place)
    whole = place + tail.rfind(b"\n") + 1
    if whole < end:
        os.ftruncate(handle, whole)


def open_journal(path: Path) -> JournalStorage:
    """Open the journal of a search, or begin one."""
    path.touch()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))


def open_storage(url: str) -> RDBStorage:
    """Open the storage of a URL.

    Raises:
        ConfigError: the URL is wrong, its driver is missing, or nobody answers there.
    """
    with explaining(url, ConfigError, "cannot be opened", key="search.storage"):
        return RDBStorage(url)


@contextmanager
def explaining(
    storage: str, kind: type[MnftError] = CheckpointError, what: str = "is gone", key: str = ""
) -> Iterator[None]:
    """Turn what a storage raises into one error of ours.

    Args:
        storage: the URL, or the path of the journal.
        kind: the class of the error.
        what: what happened to the storage, in words.
        key: the config key to blame, or none.

    Raises:
        MnftError: the storage cannot be reached.
    """
    shown = hide_password(storage)
    try:
        with foreign(f"the storage {shown} {what}", kind):
            yield
    except MnftError as error:
        if error.message.startswith(f"the storage {shown}"):
            error.hint = (
                "a URL such as postgresql+psycopg2://user@host/database, with its driver installed"
                if key
                else "nothing is lost that was told before; run the same command again"
            )
            error.key = key or None
        raise


def hide_password(url: str) -> str:
    """The URL without the password in it."""
    scheme, separator, rest = url.partition("://")
    login, at, host = rest.rpartition("@")
    user = login.partition(":")[0]
    return f"{scheme}{separator}{user}{at}{host}" if separator else url


def silence() -> None:
    """Let Optuna say only what is wrong: the search has its own words for the rest."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
