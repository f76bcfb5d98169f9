"""Several processes at once: one store, one name, one run folder."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from faults_support import Place, Warm, assert_same_run

from mnft.data.store.index import compute_checks, parse_index

pytestmark = pytest.mark.faults
# Wait at the point until the test says so, in a file.
WAIT = """
import pathlib, time
pathlib.Path("waiting-{number}").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.01)
"""


@pytest.fixture
def place(tmp_path: Path, warm: Warm, fault_images: Path) -> Place:
    return Place(tmp_path / "place", warm, fault_images)


def test_ten_runs_build_one_store(place: Place, warm: Warm, fault_images: Path) -> None:
    """All end well and alike, and each content is decoded once."""
    started = [place.start_training("run.name=null", "train.epochs=2") for _ in range(10)]
    ended = [process.wait() for process in started]
    assert [e.code for e in ended] == [0] * 10, [e.err for e in ended if e.code]
    runs = sorted((place.folder / "runs").iterdir())
    assert {run.name for run in runs} == {"small", *(f"small-{n}" for n in range(2, 11))}
    alone = Place(place.folder.parent / "alone", warm, fault_images)
    assert alone.train("train.epochs=2").code == 0
    for run in runs:
        assert_same_run(alone.run, run)
    stores = sorted((place.folder / "cache").glob("*/*/index.bin"))
    counts = []
    for path in stores:
        index = parse_index(path.read_bytes())
        assert (index["check"] == compute_checks(index)).all()
        assert len({bytes(sha256) for sha256 in index["sha256"]}) == len(index)
        counts.append(len(index))
        other = next((alone.folder / "cache").glob(f"*/{path.parent.name}/index.bin"))
        for name in ("index.bin", "pixels.bin"):
            assert path.with_name(name).read_bytes() == other.with_name(name).read_bytes()
    assert sorted(counts) == [12, 24]


def test_two_runs_of_one_name_at_the_same_moment(
    place: Place, warm: Warm, fault_images: Path
) -> None:
    """Both have found the name free; one gets it."""
    waiting = [
        place.start_training(act=WAIT.format(number=n), at=1, name="before os.rename .run.")
        for n in range(2)
    ]
    for number, process in enumerate(waiting):
        process.until_there(place.folder / f"waiting-{number}")
    (place.folder / "go").touch()
    ended = sorted((process.wait() for process in waiting), key=lambda e: e.code)
    assert ended[0].code == 0, ended[0].err
    ended[1].fails_clearly(2, "run exists already", "--resume")
    alone = Place(place.folder.parent / "alone", warm, fault_images)
    assert alone.train().code == 0
    assert_same_run(alone.run, place.run)
    assert [path.name for path in (place.folder / "runs").iterdir()] == ["run"]


def test_a_run_under_way_is_not_resumed_by_another_process(
    place: Place, warm: Warm, fault_images: Path
) -> None:
    first = place.start_training(act=WAIT.format(number=0), at=5, name="optimizer step")
    first.until_there(place.folder / "waiting-0")
    before = {p: p.read_bytes() for p in place.run.rglob("*") if p.is_file()}
    place.resume().fails_clearly(1, "runs/run: another process is training this run")
    assert {p: p.read_bytes() for p in place.run.rglob("*") if p.is_file()} == before
    (place.folder / "go").touch()
    assert first.wait().code == 0
    alone = Place(place.folder.parent / "alone", warm, fault_images)
    assert alone.train().code == 0
    assert_same_run(alone.run, place.run)


def test_loading_processes_of_a_killed_run_do_not_hold_it(place: Place) -> None:
    """They live for some seconds after it."""
    sets = ("data.store=off", "data.workers=2", "train.batch_size=2")
    process = place.start_training(*sets, act=WAIT.format(number=0), at=18, name="optimizer step")
    process.until_there(place.folder / "waiting-0")
    process.kill(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    started = time.monotonic()
    resumed = place.resume()
    assert resumed.code == 0, resumed.err
    assert time.monotonic() - started < 60
