"""Signals that ask this process to stop: at once, or at the next moment that loses nothing."""

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
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
_WAIT_S = 0.5


class StopRequest:
    """What Ctrl-C, SIGTERM and SIGUSR1 have asked of this process, and when it is raised.

    Signals belong to the whole process, so there is one of these: `stop_request`.
    """

    def __init__(self) -> None:
        self._process = 0  # the one that handles signals; processes that it forks do not
        self._deferred = 0  # blocks of `deferred` that the main thread is in
        self._request: Interrupted | None = None  # a signal that has come and was not raised
        self._raised: Interrupted | None = None  # what the handler raised
        self._first_only = False
        self._ignoring = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Let signals raise `Interrupted` in the main thread until the block ends."""
        self._process = os.getpid()
        self._request, self._raised = None, None
        self._first_only, self._ignoring = False, False
        before = {number: signal.signal(number, self._on_signal) for number in _EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def pending(self) -> bool:
        """Whether a signal has come that was not raised yet."""
        return self._request is not None

    def raise_if_pending(self) -> None:
        """Raise what a signal asked for.

        Raises:
            Interrupted: a signal has come.
        """
        request, self._request = self._request, None
        if request is not None:
            raise request

    def raise_if_dropped(self) -> None:
        """Raise again what the handler raised while an object was removed: Python drops that.

        For code that goes on only if no signal has come.

        Raises:
            Interrupted: a signal has come.
        """
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Put off the first signal: code inside asks for it, or it is raised at the end.

        A second signal is raised at once.

        Raises:
            Interrupted: a signal has come.
        """
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        if not self._deferred:
            self.raise_if_pending()

    def wait_for_signal(self) -> None:
        """Wait a moment for a signal that is on its way, and raise what it asks for.

        A scheduler signals all processes of a job one after the other. The end of another process
        may be known here before the signal arrives.

        Raises:
            Interrupted: a signal has come.
        """
        time.sleep(_WAIT_S)
        self.raise_if_pending()

    def heed_first_only(self) -> None:
        """From now on, ignore the signals that follow the first one until the process has ended.

        For a process of torchrun, which passes on a signal that the scheduler may have sent to all
        processes anyway, and sends its own when one of them has ended: a second signal does not
        come from an impatient person, and must not cut short what the first one has begun.
        """
        self._first_only = True

    def ignore_signals(self) -> None:
        """From now on, ignore signals: this process is ending, and has something to say first."""
        self._ignoring = True

    def _on_signal(self, number: int, _frame: object) -> None:
        if os.getpid() != self._process:  # a loading process, which ends without a message
            raise KeyboardInterrupt
        if self._ignoring:
            return
        self._ignoring = self._first_only
        # Processes that load images may get the same signal. For each that ends, torch's handler
        # would raise an error, wherever this process is by then.
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        which = signal.Signals(number)
        name = "Ctrl-C" if which is signal.SIGINT else which.name
        request = Interrupted(_EXIT_CODES[which], f"by {name}", by=name)
        if self._deferred and self._request is None:
            self._request = request
            return
        self._request, self._raised = None, request
        raise request


stop_request = StopRequest()


def leave(exit_code: int) -> NoReturn:
    """End the process now, without the cleanup of libraries that may wait for other processes."""
    import multiprocessing  # late: it would be a seventh of the time that `mnft --help` takes

    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(exit_code)
