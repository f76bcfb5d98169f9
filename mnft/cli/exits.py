"""Errors to messages and exit codes: what stands between a command and the shell."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, ParamSpec

import typer

from mnft.errors import Interrupted, MnftError
from mnft.signals import handling_signals

P = ParamSpec("P")

EXIT_BROKEN_PIPE = 141

# What the user can mend; any other OSError is a bug and keeps its traceback.
_DISK_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
# Of these, those that tell of too little memory, or of a loading process that is lost.
_PERHAPS_MEMORY = (MemoryError, RuntimeError)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into messages and exit codes; a bug keeps its traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from mnft import console

        try:
            with handling_signals():
                command(*args, **kwargs)
        except BrokenPipeError:
            # The reader of our output is gone; the interpreter must not try to flush into it.
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except (
            MnftError,
            Interrupted,
            KeyboardInterrupt,
            OSError,
            MemoryError,
            RuntimeError,
        ) as error:
            if (known := explain(error, options=kwargs)) is None:
                raise
            console.show_error(known)
            raise typer.Exit(known.exit_code) from None

    return run


def explain(
    error: BaseException, *, options: Mapping[str, Any] | None = None
) -> MnftError | Interrupted | None:
    """What an error means to a person; None where it is a bug, of which a traceback says more.

    Args:
        error: any.
        options: of the command that met it, which say what the person can change.
    """
    options = options or {}
    if isinstance(error, MnftError | Interrupted):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(130, "by Ctrl-C")
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        where = error.filename2 or error.filename or "the disk"
        may_help = "output" in options and error.errno in _NOT_WRITABLE
        hint = "name another place to write to: --output PATH" if may_help else None
        return MnftError(f"{where}: {error.strerror}", hint=hint)
    if not isinstance(error, _PERHAPS_MEMORY):
        return None
    if "torch" not in sys.modules:  # which is slow to import
        return _too_little_memory(error, options) if isinstance(error, MemoryError) else None
    from mnft.data.batches.workers import explain_lost_worker
    from mnft.device.memory import is_out_of_memory

    if is_out_of_memory(error):
        return _too_little_memory(error, options)
    return explain_lost_worker(error)


def leave(exit_code: int) -> NoReturn:
    """End the process now, with no farewell to libraries that might wait for other processes."""
    import multiprocessing  # late: it would be a seventh of the time that `mnft --help` takes

    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(exit_code)


def _too_little_memory(error: BaseException, options: Mapping[str, Any]) -> MnftError:
    reason = next(iter(str(error).splitlines()), "")
    hint = None
    if "batch_size" in options:
        hint = "smaller values of --batch-size and --workers need less"
    elif "overrides" in options:
        hint = "lower train.batch_size, eval.batch_size, data.img_size or data.workers"
    return MnftError(f"this machine has too little memory{reason and f': {reason}'}", hint=hint)
