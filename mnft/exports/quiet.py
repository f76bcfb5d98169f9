"""Keep tool-chains from writing to the terminal, and from reporting over the network."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings and logs of tool-chains, which do not concern the user.

    `mnft -v` shows them, and shows on stderr what goes to stdout (NNCF's progress bars): mnft's
    stdout is for data.
    """
    verbose = _is_verbose()
    with contextlib.redirect_stdout(sys.stderr if verbose else io.StringIO()):
        if verbose:
            yield
            return
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Like `quiet`, and hold back what native code and progress bars write to stderr.

    mnft's own messages would be lost in it too.
    """
    if _is_verbose():
        with _diverted(1, os.dup(2)), quiet():
            yield
        return
    with (
        _diverted(1, os.open(os.devnull, os.O_WRONLY)),
        _diverted(2, os.open(os.devnull, os.O_WRONLY)),
        contextlib.redirect_stderr(io.StringIO()),
        quiet(),
    ):
        yield


def _is_verbose() -> bool:
    return logging.getLogger().isEnabledFor(logging.INFO)


@contextmanager
def _diverted(descriptor: int, target: int) -> Iterator[None]:
    """Point a file descriptor at another one, which is closed."""
    saved = os.dup(descriptor)
    _flush()
    os.dup2(target, descriptor)
    os.close(target)
    try:
        yield
    finally:
        _flush()
        os.dup2(saved, descriptor)
        os.close(saved)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def forbid_telemetry() -> None:
    """Keep OpenVINO and NNCF from reporting their use to Google Analytics; call before importing.

    Their own switch is the command `opt_in_out --opt_out`, which changes the user's home and
    reports the choice itself. Both are made to work without the package that reports, so it is
    kept from being imported in this process.
    """
    # None makes `import` raise ModuleNotFoundError; a caller that has imported it keeps it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
