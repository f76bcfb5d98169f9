"""Errors to messages and exit codes, between a command and the shell."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from mnft.errors import Interrupted, MnftError
from mnft.failures import explain
from mnft.signals import EXIT_BROKEN_PIPE, stop_request

P = ParamSpec("P")


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into messages and exit codes; a bug keeps its traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from mnft import console

        try:
            with stop_request.handling_signals():
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
