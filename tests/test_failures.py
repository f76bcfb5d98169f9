"""What errors of the system and of torch mean to a person, and which are bugs."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from mnft.errors import DataError, Interrupted, MnftError
from mnft.failures import explain, explain_lost_worker

NO_ROOM = OSError(errno.ENOSPC, "No space left on device", "best/model.safetensors")


@pytest.mark.parametrize("error", [DataError("no images"), Interrupted(143, "by SIGTERM")])
def test_errors_of_ours_stay_what_they_are(error: MnftError | Interrupted) -> None:
    assert explain(error) is error


def test_ctrl_c() -> None:
    told = explain(KeyboardInterrupt())
    assert isinstance(told, Interrupted)
    assert told.exit_code == 130


@pytest.mark.parametrize(
    ("error", "options", "message", "hint"),
    [
        (NO_ROOM, {}, "best/model.safetensors: No space left on device", None),
        (NO_ROOM, {"output": None}, "best/model.safetensors: No space left", "--output PATH"),
        (OSError(errno.EIO, "Input/output error"), {"output": None}, "the disk: Input", None),
        (MemoryError(), {}, "this machine has too little memory", None),
        (MemoryError(), {"batch_size": 8}, "this machine has too little memory", "--batch-size"),
        (
            RuntimeError("CUDA error: out of memory\nSearch for"),
            {"overrides": []},
            "this machine has too little memory: CUDA error: out of memory",
            "train.batch_size",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            {},
            "a process that loads images was killed",
            "--workers N",
        ),
        (
            RuntimeError("unable to write to file </torch_7_1>"),
            {},
            "a process that loads images found no room in /dev/shm",
            "--shm-size",
        ),
    ],
)
def test_what_a_person_can_change(
    error: BaseException, options: dict[str, Any], message: str, hint: str | None
) -> None:
    told = explain(error, options=options)
    assert isinstance(told, MnftError)
    assert told.message.startswith(message)
    assert "\n" not in told.message
    assert told.hint is None if hint is None else hint in str(told.hint)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes cannot be multiplied"),
        ValueError("x"),
        OSError(errno.EBADF, "Bad file descriptor"),
    ],
)
def test_bugs_keep_their_traceback(error: Exception) -> None:
    assert explain(error) is None


def test_a_pipe_of_a_loading_process_that_breaks() -> None:
    told = explain_lost_worker(ConnectionResetError(104, "Connection reset by peer"))
    assert told is not None
    assert "was killed" in told.message
    assert explain_lost_worker(RuntimeError("shapes cannot be multiplied")) is None
