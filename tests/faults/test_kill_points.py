"""SIGKILL at points over the whole run; resumed, the run equals one that was never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults_support import Place, Warm, assert_same_run

pytestmark = pytest.mark.faults

KINDS = {
    # Both stages, an average of the weights, and a snapshot after each update.
    "stages": {
        "model": {"name": "mobilenetv2_035"},
        "data": {"img_size": 32},
        "train": {"epochs": 2, "stages": ["head", "finetune"], "ema_decay": 0.9},
        "run": {"snapshot_minutes": 1e-9},
        "augment": {"mixup": 0.2},
    },
    # No snapshots: a killed epoch begins again.
    "plain": {"train": {"epochs": 3}, "schedule": {"name": "cosine"}},
    # Epochs shorter than mnft's own interval, which are saved together.
    "short epochs": {"train": {"epochs": 5, "ema_decay": 0.9}, "schedule": {"name": "cosine"}},
}
COUNTS = {"stages": 32, "plain": 16, "short epochs": 16}
INTERVALS = {"stages": 0.0, "plain": 0.0, "short epochs": None}
Spread = Callable[[str], list[tuple[int, str]]]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, warm: Warm, fault_images: Path
) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a kind, with the names of its points."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            place = Place(
                tmp_path_factory.mktemp(kind) / "place", warm, fault_images, **KINDS[kind]
            )
            record = str(place.folder / "points")
            ended = place.train(record=record, save_interval=INTERVALS[kind])
            assert ended.code == 0, ended.err
            made[kind] = place.folder
        return made[kind]

    return make


def choose(names: list[str], count: int) -> list[int]:
    """Numbers, from 1, of points spread over the run: of all kinds, and steps as one kind of all.

    A run of equal names in a row, such as hundreds of steps of the head, counts as three.
    """
    thinned: list[int] = []
    start = 0
    while start < len(names):
        end = start
        while end < len(names) and names[end] == names[start]:
            end += 1
        thinned += sorted({start, (start + end - 1) // 2, end - 1})
        start = end
    last = len(thinned) - 1
    return sorted({thinned[round(i * last / (count - 1))] + 1 for i in range(count)})


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param(kind, part, marks=[] if kind == "plain" and part == 3 else [pytest.mark.slow])
        for kind, count in COUNTS.items()
        for part in range(count // 4)
    ],
)
def test_killed_anywhere_and_resumed_equals_uninterrupted(
    kind: str,
    part: int,
    whole: Callable[[str], Path],
    tmp_path: Path,
    warm: Warm,
    fault_images: Path,
) -> None:
    reference = whole(kind)
    names = (reference / "points").read_text().splitlines()
    chosen = choose(names, COUNTS[kind])
    assert len(chosen) == COUNTS[kind]
    for at in chosen[part :: COUNTS[kind] // 4]:
        place = Place(tmp_path / str(at), warm, fault_images, **KINDS[kind])
        killed = place.train(at=at, save_interval=INTERVALS[kind])
        assert killed.code == -signal.SIGKILL, (names[at - 1], killed.err)
        resumed = place.go_on(save_interval=INTERVALS[kind])
        assert resumed.code == 0, (names[at - 1], resumed.err)
        assert_same_run(reference / "runs" / "run", place.run)


def test_killed_twice(
    whole: Callable[[str], Path], tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    """The second time while what the first left is mended."""
    reference = whole("plain")
    names = (reference / "points").read_text().splitlines()
    swap = next(i for i, n in enumerate(names, 1) if n.startswith("before os.rename last last.old"))
    for second in (3, 9):
        place = Place(tmp_path / str(second), warm, fault_images, **KINDS["plain"])
        assert place.train(at=swap + 1).code == -signal.SIGKILL
        assert (place.run / "last.old").exists()
        assert not (place.run / "last").exists()
        assert place.resume(at=second).code == -signal.SIGKILL
        assert place.resume().code == 0
        assert_same_run(reference / "runs" / "run", place.run)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_process_of_its_own_killed_by_the_clock(
    share: float, whole: Callable[[str], Path], tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    """`python -m mnft` as a shell starts it, killed from outside."""
    reference = whole("plain")
    place = Place(tmp_path / "place", warm, fault_images, **KINDS["plain"])
    command = [sys.executable, "-m", "mnft", "train"]
    environment = {**os.environ, "MNFT_CACHE": str(place.folder / "cache"), "OMP_NUM_THREADS": "1"}

    def start(*args: object) -> subprocess.Popen[bytes]:
        arguments = [*command, *map(str, args)]
        return subprocess.Popen(
            arguments, cwd=place.folder, env=environment, stderr=subprocess.DEVNULL
        )

    process = start(place.config)
    deadline = time.monotonic() + 120
    while not place.run.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(share * 0.3)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert start("--resume", place.run).wait() == 0
    assert_same_run(reference / "runs" / "run", place.run)
