"""Errors to messages and exit codes: what stands between a command and the shell."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import ParamSpec

import typer

from mnft.errors import Interrupted, MnftError
from mnft.stopping import handling_signals

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
            hint = "name another place to write to: --output PATH"
            may_help = "output" in kwargs and error.errno in _NOT_WRITABLE
            console.show_error(
                MnftError(f"{where}: {error.strerror}", hint=hint if may_help else None)
            )
            raise typer.Exit(MnftError.exit_code) from None
        except (MemoryError, RuntimeError) as error:
            if (known := _explain(error, kwargs)) is None:
                raise
            console.show_error(known)
            raise typer.Exit(known.exit_code) from None

    return run


def _explain(error: BaseException, options: Mapping[str, object]) -> MnftError | None:
    """What torch's plain errors mean; None where it is a bug."""
    if "torch" not in sys.modules:  # which is slow to import
        return _too_little_memory(error, options) if isinstance(error, MemoryError) else None
    from mnft.data.loaders import explain_lost_worker
    from mnft.engine.memory import is_out_of_memory

    if is_out_of_memory(error):
        return _too_little_memory(error, options)
    return explain_lost_worker(error)


def _too_little_memory(error: BaseException, options: Mapping[str, object]) -> MnftError:
    reason = next(iter(str(error).splitlines()), "")
    hint = None
    if "batch_size" in options:
        hint = "smaller values of --batch-size and --workers need less"
    elif "overrides" in options:
        hint = "lower train.batch_size, eval.batch_size, data.img_size or data.workers"
    return MnftError(f"this machine has too little memory{reason and f': {reason}'}", hint=hint)
