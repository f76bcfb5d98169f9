"""The standard streams and the encoding of names, made fit for use before a command begins."""

from __future__ import annotations

import io
import os
import sys

_RESTARTED = "MNFT_RESTARTED_IN_UTF8"
_closed: set[int] = set()


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where it reads names in another encoding.

    Names of files and classes are UTF-8 in every file that mnft writes. Under an ASCII or Latin-1
    locale Python can neither open such files by name nor print the names, and the encoding is
    fixed once the interpreter runs. Names are bytes on Linux and macOS, so nothing is lost.
    """
    if os.name != "posix" or sys.getfilesystemencoding() == "utf-8" or _RESTARTED in os.environ:
        return
    if not sys.executable:  # Python is embedded in another program
        return
    # For the processes that this one starts too; the mark prevents an endless loop of restarts.
    os.environ |= {"PYTHONUTF8": "1", _RESTARTED: "1"}
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_closed_streams() -> None:
    """Let the null device stand for standard streams that are closed (`mnft ... >&-`).

    Otherwise Python has None in their place, and the next file that is opened, a checkpoint for
    instance, gets the number of the closed stream and with it what libraries print there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _closed.add(number)
            # The lowest free number, which is this one; child processes get it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if 0 in _closed:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if 1 in _closed:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if 2 in _closed:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def escape_what_cannot_be_encoded() -> None:
    """Let standard output write backslash escapes where PYTHONIOENCODING has no such character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def is_stdout_closed() -> bool:
    """Whether nobody can read what goes to standard output, as it was closed from the start."""
    return 1 in _closed
