"""The error tree: every failure that the user can fix, with its exit code and a hint.

MnftError                 exit code 1: the work failed
  ConfigError             exit code 2: wrong usage or config
  DataError               images, folders, splits, downloads
  ModelError              model names, weights, heads
  CheckpointError         run folders, model folders, resume states
  TrainError              training went wrong (a loss that is not finite)
  ExportError             export, quantization, pruning and their tool-chains
  GateError               exit code 3: a gate was not met
Interrupted               exit code 130 (Ctrl-C) or 143 (SIGTERM, SIGUSR1); not an MnftError
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MnftError(Exception):
    """A failure that the user can fix.

    Args:
        message: what failed, where, what was found and what was expected.
        hint: what to do about it; shown on a line of its own.
        key: the config key that is to blame, such as `model.name`; code that knows the config
            file puts the file and the line in front.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.key = key


class ConfigError(MnftError):
    """A config, flag or override that cannot be used."""

    exit_code = 2


class DataError(MnftError):
    """Images, folders, splits or downloads that cannot be used."""


class ModelError(MnftError):
    """A model that cannot be built or whose weights cannot be loaded."""


class CheckpointError(MnftError):
    """A run folder, model folder or resume state that cannot be used."""


class TrainError(MnftError):
    """Training that cannot continue."""


class ExportError(MnftError):
    """A model that cannot be exported, quantized or pruned, or a tool-chain that is missing."""


class GateError(MnftError):
    """A result that does not meet its gate."""

    exit_code = 3


class Interrupted(BaseException):
    """The process was asked to stop; what was saved can be resumed.

    Args:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM and SIGUSR1.
        message: what was kept and how to resume.
        by: what asked for it, in words.
    """

    def __init__(self, exit_code: int, message: str, *, by: str = "Ctrl-C") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.by = by


def first_line(error: BaseException, *, default: str | None = None, limit: int = 300) -> str:
    """The first line of an error's text, at most `limit` characters; its type if it has none."""
    text = str(error).strip()
    if not text:
        return type(error).__name__ if default is None else default
    return text.splitlines()[0][:limit]


@contextmanager
def foreign(what: str, kind: type[MnftError], *, hint: str | None = None) -> Iterator[None]:
    """Call a tool-chain whose errors have no common base, and turn what it raises into one of ours.

    Nowhere else is `Exception` caught: exporters, quantizers and tracers raise whatever their code
    happens to stumble over. What is not their fault passes unchanged: our own errors, too little
    memory, a full disk, a lost loading process and Ctrl-C.

    Args:
        what: the start of the message, such as "torchao cannot quantize this model"; a colon and
            the first line of the error follow.
        kind: the class of the error to raise.
        hint: what the user can do about it.

    Raises:
        MnftError: an error of class `kind`, with the tool-chain's error as its cause.
    """
    from mnft.failures import explain  # which imports this module

    try:
        yield
    except Exception as error:
        if explain(error) is not None:
            raise
        reason = first_line(error)
        if isinstance(error, ImportError):  # installed, but damaged or of another version
            reason = f"a package does not work here: {reason}"
        raise kind(f"{what}: {reason}", hint=hint) from error
