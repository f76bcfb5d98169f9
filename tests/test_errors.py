"""The border to foreign code: what is turned into an error of ours, and what passes."""

from __future__ import annotations

import errno
import os

import pytest

from mnft.errors import (
    CheckpointError,
    ExportError,
    Interrupted,
    TrainError,
    first_line,
    foreign,
)


class Unrelated(Exception):
    """As of onnxruntime: no base except Exception."""


class OutOfMemoryError(RuntimeError):
    """As torch's own, which is known by its name."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no such operator\nand a page of details"), "no such operator"),
        (Unrelated("  bad graph "), "bad graph"),
        (AssertionError(), "AssertionError"),
        (KeyError("weight"), "'weight'"),
        (ImportError("No module named 'x'"), "a package does not work here: No module named 'x'"),
        (OSError("a file that is no model"), "a file that is no model"),
        (ValueError("x" * 1000), "x" * 300),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_foreign_code_becomes_ours(error: Exception, reason: str) -> None:
    with (
        pytest.raises(ExportError) as caught,
        foreign("torchao cannot quantize this model", ExportError, hint="try another"),
    ):
        raise error
    assert caught.value.message == f"torchao cannot quantize this model: {reason}"
    assert caught.value.hint == "try another"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        TrainError("the loss is not finite"),
        Interrupted(143, "stopped"),
        KeyboardInterrupt(),
        SystemExit(1),
        MemoryError(),
        OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_its_fault_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign("it failed", CheckpointError):
        raise error
    assert caught.value is error


def test_without_an_error_nothing_happens() -> None:
    with foreign("it failed", CheckpointError):
        pass


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError(), default="") == ""
    assert first_line(ValueError("abcdef"), limit=3) == "abc"
