"""Signals that ask the process to stop: at once, or at the next moment that loses nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from mnft.errors import Interrupted

EXIT_BROKEN_PIPE = 141
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
_MOMENT_S = 0.5
_process = 0
_patient = 0
_asked: Interrupted | None = None
_first_only = False
_ignoring = False


@contextmanager
def handling_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGUSR1 raise `Interrupted`; for the main thread."""
    global _asked, _process, _first_only, _ignoring
    _asked, _process, _first_only, _ignoring = None, os.getpid(), False, False
    before = {number: signal.signal(number, _on_signal) for number in _CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_asked() -> bool:
    """Whether a signal has come that has not been raised."""
    return _asked is not None


def raise_if_asked() -> None:
    """Raise what a signal asked for.

    Raises:
        Interrupted: a signal has come.
    """
    global _asked
    if _asked is not None:
        asked, _asked = _asked, None
        raise asked


def await_signal() -> None:
    """Wait a moment for a signal that is on its way, and raise what it asks for.

    A scheduler signals all processes of a job one after the other; that another one has ended may
    be known here before the signal is.

    Raises:
        Interrupted: a signal has come.
    """
    time.sleep(_MOMENT_S)
    raise_if_asked()


def heed_first_signal_only() -> None:
    """From now on, ignore the signals that follow one until the process has ended.

    For a process of torchrun, which passes a signal on that the scheduler may have sent to all
    processes anyway, and sends its own when one of them has ended: no second one is an impatient
    person, and none may cut short what the first one has begun.
    """
    global _first_only
    _first_only = True


def ignore_signals() -> None:
    """From now on, ignore signals: this process is ending, and has something to say first."""
    global _ignoring
    _ignoring = True


@contextmanager
def patiently() -> Iterator[None]:
    """Put off the first signal: whoever works inside asks for it, or it is raised at the end.

    A second signal is raised at once.

    Raises:
        Interrupted: a signal has come.
    """
    global _patient
    _patient += 1
    try:
        yield
    finally:
        _patient -= 1
    if not _patient:
        raise_if_asked()


def leave(exit_code: int) -> NoReturn:
    """End the process now, without the cleanup of libraries that may wait for other processes."""
    import multiprocessing  # late: it would be a seventh of the time that `mnft --help` takes

    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(exit_code)


def _on_signal(number: int, _frame: object) -> None:
    global _asked, _ignoring
    if os.getpid() != _process:  # a loading process, which ends in silence
        raise KeyboardInterrupt
    if _ignoring:
        return
    _ignoring = _first_only
    _forget_children()
    which = signal.Signals(number)
    name = "Ctrl-C" if which is signal.SIGINT else which.name
    asked = Interrupted(_CODES[which], f"by {name}", by=name)
    if _patient and _asked is None:
        _asked = asked
        return
    _asked = None
    raise asked


def _forget_children() -> None:
    """Processes that load images may get the same signal; their end is no news from now on.

    Torch's handler would raise an error for each, wherever this process is by then.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
