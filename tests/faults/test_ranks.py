"""One of two processes fails, is stopped or is lost: who says what, and how both end.

The two are started as `srun` does it: nobody ends one because the other has ended, and nobody tells
them their places on the machine. What torchrun adds is in test_distributed.py.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from faults_support import Ended, Place, Started, Warm

pytestmark = pytest.mark.faults

# Rank 1 does this at the beginning of the second epoch, when one is saved.
ON_RANK_1 = """
import os, signal
import torch
from mnft.engine import fit
train = fit.train_one_epoch
epochs = []
def spoil(*args, **kwargs):
    epochs.append(1)
    if os.environ["RANK"] == "1" and len(epochs) == 2:
        {failure}
    return train(*args, **kwargs)
fit.train_one_epoch = spoil
"""
# Rank 0 waits in C code that no signal interrupts, as it does for a kernel of NCCL.
STUCK = """
import ctypes, os
from mnft.engine import fit
train = fit.train_one_epoch
epochs = []
def spoil(*args, **kwargs):
    epochs.append(1)
    if len(epochs) == 2:
        if os.environ["RANK"] == "0":
            lock = ctypes.create_string_buffer(64)
            library = ctypes.CDLL(None)
            library.pthread_mutex_lock(lock)
            library.pthread_mutex_lock(lock)
        {failure}
    return train(*args, **kwargs)
fit.train_one_epoch = spoil
"""
# As on a machine with GPUs, but for NCCL and contexts.
GPUS = """
import os
from types import SimpleNamespace
import torch
from mnft.engine import device
rank = os.environ["RANK"]
device.has_cuda = lambda: {there}
torch.cuda.device_count = lambda: {count}
torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid={uuid})
torch.cuda.set_device = lambda device: print("took", device)
"""


def start_both(place: Place, *sets: str, **spec: object) -> list[Started]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return [
        place.start_training(*sets, env={**common, "RANK": str(rank)}, **spec) for rank in range(2)
    ]


def train_both(place: Place, *sets: str, **spec: object) -> tuple[Ended, Ended]:
    first, second = [process.wait() for process in start_both(place, *sets, **spec)]
    return first, second


@pytest.fixture
def place(tmp_path: Path, warm: Warm, fault_images: Path) -> Place:
    return Place(tmp_path / "place", warm, fault_images)


def says(ended: Ended) -> list[str]:
    labels = ("error: ", "stopped: ", "hint: ", "warning: ", "rank ")
    return [line for line in ended.err.splitlines() if line.startswith(labels)]


ABOVE = "error: another process ended (rank 1); its message is above"


def test_memory_runs_out_in_one(place: Place) -> None:
    failure = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")'
    first, second = train_both(place, first=ON_RANK_1.format(failure=failure))
    assert (first.code, second.code) == (1, 1)
    assert says(first) == [ABOVE]
    assert says(second)[0].startswith("error: rank 1: cpu has too little memory: CUDA out of")
    assert "train.accumulation_steps" in says(second)[1]
    assert "Traceback" not in first.err + second.err
    assert first.seconds < 20
    assert '"PeerEnded"' in (place.run / "log.jsonl").read_text()


def test_one_has_no_gpu_of_its_own(place: Place) -> None:
    spoil = GPUS.format(there="True", count=1, uuid="'the only one'")
    first, second = train_both(place, "train.device=auto", first=spoil)
    assert (first.code, second.code) == (2, 2)
    host = socket.gethostname()
    first.fails_clearly(
        2, f"train.device=auto: 2 processes on {host} find 1 GPU", "--nproc-per-node 1"
    )
    assert second.err == ""
    assert "took" not in first.out + second.out


def test_one_has_no_gpu_at_all(place: Place) -> None:
    spoil = GPUS.format(there="rank == '0'", count=1, uuid="'the only one'")
    first, second = train_both(place, "train.device=cuda", first=spoil)
    first.fails_clearly(2, "train.device=cuda: rank 1: this machine has no device 'cuda'")
    assert (second.code, second.err) == (2, "")
    first, second = train_both(place, "train.device=auto", first=spoil)
    first.fails_clearly(2, "computes on cuda, rank 1 (on")
    assert (second.code, second.err) == (2, "")


UNREADABLE = """
import os
from mnft.data import loaders
from mnft.errors import DataError
decode = loaders.decode
def refuse(path, **kwargs):
    if os.environ["RANK"] == "1" and path.stem == "003" and "train" in path.parts:
        raise DataError(f"{path}: gone")
    return decode(path, **kwargs)
loaders.decode = refuse
"""


def test_an_image_that_one_cannot_read(place: Place) -> None:
    sets = ("data.store=off", "data.workers=1")
    first, second = train_both(place, *sets, first=UNREADABLE)
    assert (first.code, second.code) == (1, 1)
    assert says(first) == [ABOVE]
    assert says(second)[0].startswith("error: rank 1: ")
    assert says(second)[0].endswith("003.png: gone")
    assert max(first.seconds, second.seconds) < 20


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one(place: Place, rank: int) -> None:
    both = start_both(place, "train.epochs=5000")
    both[0].until_there(place.run / "resume.pt")
    both[rank].kill(signal.SIGTERM)
    first, second = (process.wait() for process in both)
    assert (first.code, second.code) == (143, 143)
    by = "SIGTERM to rank 1" if rank else "SIGTERM"
    assert says(first)[0].startswith(f"stopped: by {by} after ")
    assert "go on with: mnft train --resume runs/run" in says(first)[0]
    assert second.err == ""
    assert '"reason": "Interrupted"' in (place.run / "log.jsonl").read_text()


def test_a_signal_to_both(place: Place) -> None:
    both = start_both(place, "train.epochs=5000")
    both[0].until_there(place.run / "resume.pt")
    for process in both * 2:  # torchrun passes on what the scheduler has sent to all
        process.kill(signal.SIGTERM)
    first, second = (process.wait() for process in both)
    first.fails_clearly(143, "go on with: mnft train --resume runs/run")
    assert (second.code, second.err) == (143, "")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_is_killed(place: Place, rank: int) -> None:
    spoil = ON_RANK_1.replace('"1"', f'"{rank}"')
    both = train_both(place, first=spoil.format(failure="os.kill(os.getpid(), signal.SIGKILL)"))
    assert both[rank].code == -signal.SIGKILL
    both[1 - rank].fails_clearly(1, "another process was lost: ", "often run out of memory")


def test_a_bug_in_one_shows_its_traceback_once(place: Place) -> None:
    first, second = train_both(place, first=ON_RANK_1.format(failure='raise TypeError("a bug")'))
    assert (first.code, second.code) == (1, 1)
    assert says(first) == [ABOVE]
    assert says(second) == ["rank 1 of 2:"]
    assert second.err.count("Traceback (most recent call last)") == 1
    assert second.err.endswith("TypeError: a bug\n")


def test_a_failure_of_both_is_said_once(place: Place) -> None:
    spoil = ON_RANK_1.replace('os.environ["RANK"] == "1" and ', "")
    failure = 'raise fit.TrainError("the training loss became nan")'
    first, second = train_both(place, first=spoil.format(failure=failure))
    first.fails_clearly(1, "error: the training loss became nan")
    assert "another process" not in first.err
    assert (second.code, second.err) == (1, "")


def test_the_main_process_fails(place: Place) -> None:
    spoil = ON_RANK_1.replace('"1"', '"0"')
    failure = 'raise OSError(28, "No space left on device", "runs/run/last")'
    first, second = train_both(place, first=spoil.format(failure=failure))
    first.fails_clearly(1, "runs/run/last: No space left on device")
    assert (second.code, second.err) == (1, "")


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (
            'raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: '
            "can't allocate memory\")",
            1,
            ABOVE,
        ),
        ("os.kill(os.getpid(), 15)", 143, "stopped: by SIGTERM to rank 1 after 1 epoch; go on"),
    ],
    ids=["error", "signal"],
)
def test_the_main_process_cannot_hear_of_it(
    place: Place, failure: str, code: int, words: str
) -> None:
    first, second = train_both(place, first=STUCK.format(failure=failure))
    assert (first.code, second.code) == (code, code)
    assert says(first)[0].startswith(words)
    assert first.seconds < 30


def test_both_train_and_leave(place: Place) -> None:
    first, second = train_both(place)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "epoch 3/3" in first.err
    assert second.err == ""
