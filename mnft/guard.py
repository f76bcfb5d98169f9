"""Errors to messages and exit codes: what stands between a command and the shell."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from mnft.errors import Interrupted, MnftError
from mnft.stopping import handling_signals

P = ParamSpec("P")

EXIT_BROKEN_PIPE = 141

# What the user can mend; any other OSError is a bug and keeps its traceback.
_DISK_ERRORS = {
    errno.EACCES,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into messages and exit codes; a bug keeps its traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from mnft import console

        try:
            with handling_signals():
                command(*args, **kwargs)
        except (MnftError, Interrupted) as error:
            console.show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.show_error(Interrupted(130, "by Ctrl-C"))
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output is gone; the interpreter must not try to flush into it.
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            where = error.filename2 or error.filename or "the disk"
            console.show_error(MnftError(f"{where}: {error.strerror}"))
            raise typer.Exit(MnftError.exit_code) from None

    return run
