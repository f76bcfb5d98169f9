"""Workers of a search that are killed at any moment: their trials are resumed bit for bit."""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from faults_support import Place, Warm
from support.training import assert_same_run

pytestmark = pytest.mark.faults

SEARCH: dict[str, Any] = {
    "trials": 3,
    "seeds": 1,
    "space": {"optim.lr": {"low": 1e-3, "high": 1e-2, "log": True}, "augment.hflip": [0, 0.5]},
}
TRAIN = {"train": {"epochs": 2}, "run": {"tensorboard": False, "name": None}}


def make_place(folder: Path, warm: Warm, images: Path, **search: Any) -> Place:
    return Place(folder, warm, images, **TRAIN, search=SEARCH | search)


def folder_of(place: Place) -> Path:
    return place.folder / "searches" / "small"


def runs_of(place: Place) -> list[Path]:
    return sorted(folder_of(place).glob("trial-*"))


def points_of(place: Place) -> list[list[str]]:
    with (folder_of(place) / "trials.csv").open(newline="") as stream:
        return [
            [
                row["trial"],
                row["state"],
                row["optim.lr"],
                row["augment.hflip"],
                row.get("val_loss", ""),
            ]
            for row in csv.DictReader(stream)
        ]


def assert_same_search(reference: Place, place: Place) -> None:
    """The same points, runs and choice."""
    assert points_of(reference) == points_of(place)
    assert [run.name for run in runs_of(reference)] == [run.name for run in runs_of(place)]
    for one, two in zip(runs_of(reference), runs_of(place), strict=True):
        assert_same_run(one, two)
    best = [(folder_of(p) / "best.yaml").read_text() for p in (reference, place)]
    assert best[0] == best[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: Warm, fault_images: Path) -> Place:
    """A search that nothing interrupted, with the names of its points."""
    place = make_place(tmp_path_factory.mktemp("search") / "place", warm, fault_images)
    ended = place.call("search", place.config, record=str(place.folder / "points"))
    assert ended.code == 0, ended.err
    return place


@pytest.mark.parametrize("part", range(5))
def test_a_search_killed_anywhere_and_begun_again_equals_one_that_was_not(
    part: int, whole: Place, tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    names = (whole.folder / "points").read_text().splitlines()
    number = 10
    chosen = [1 + i * (len(names) - 1) // (number - 1) for i in range(number)]
    for at in chosen[part :: number // 2]:
        place = make_place(tmp_path / str(at), warm, fault_images)
        killed = place.call("search", place.config, at=at)
        assert killed.code == -signal.SIGKILL, (names[at - 1], killed.err)
        again = place.call("search", place.config)
        assert again.code == 0, (names[at - 1], again.err)
        assert_same_search(whole, place)


def test_another_worker_resumes_the_trial_of_a_killed_one(
    whole: Place, tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    place = make_place(tmp_path / "place", warm, fault_images)
    # The first one is killed in its second trial, while the other one searches too.
    names = (whole.folder / "points").read_text().splitlines()
    first = place.start("search", place.config, at=len(names) // 3)
    first.until_there(folder_of(place) / "search.json")
    other = place.start("search", place.config, "--join")
    assert first.wait().code == -signal.SIGKILL
    ended = other.wait()
    assert ended.code == 0, ended.err
    assert "again: the process that began it is gone" in ended.err
    assert_same_search(whole, place)


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_search_what_one_does(
    workers: int, whole: Place, tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    place = make_place(tmp_path / "place", warm, fault_images)
    ended = place.call("search", place.config, "--workers", workers)
    assert ended.code == 0, ended.err
    assert_same_search(whole, place)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_parent_stops_its_workers(
    name: str, whole: Place, tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    place = make_place(tmp_path / "place", warm, fault_images)
    long = ("--set", "train.epochs=2000", "--set", "search.name=long")
    begun = place.start("search", place.config, *long, "--workers", 2)
    run = place.folder / "searches" / "long" / "trial-0001" / "log.jsonl"
    begun.until_there(run)
    time.sleep(1)
    begun.kill(getattr(signal, name))
    ended = begun.wait()
    ended.fails_clearly(130 if name == "SIGINT" else 143, "after 0 of 3 trials", "mnft search")
    sizes = [path.stat().st_size for path in run.parent.parent.glob("trial-*/log.jsonl")]
    assert len(sizes) == 2
    for log in run.parent.parent.glob("trial-*/log.jsonl"):
        assert '"event": "stop"' in log.read_text()  # each has saved
    time.sleep(1)
    now = [path.stat().st_size for path in run.parent.parent.glob("trial-*/log.jsonl")]
    assert now == sizes


def test_workers_end_with_a_parent_that_is_killed(
    tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    place = make_place(tmp_path / "place", warm, fault_images)
    begun = place.start("search", place.config, "--set", "train.epochs=2000", "--workers", 2)
    run = folder_of(place) / "trial-0001" / "log.jsonl"
    begun.until_there(run)
    begun.kill(signal.SIGKILL)
    begun.wait()
    deadline = time.monotonic() + 30
    while '"event": "stop"' not in run.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_journal_that_is_removed_is_one_clear_error(
    tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    place = make_place(tmp_path / "place", warm, fault_images)
    begun = place.start("search", place.config, "--set", "train.epochs=2000")
    run = folder_of(place) / "trial-0000" / "log.jsonl"
    begun.until_there(run)
    (folder_of(place) / "journal.log").unlink()
    begun.wait().fails_clearly(1, "journal.log")


def test_a_full_disk_keeps_the_trial_for_later(
    whole: Place, tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    """Files may not grow beyond a size: the weights fail, and nothing is told of the trial."""
    place = make_place(tmp_path / "place", warm, fault_images)
    limit = {"RLIMIT_FSIZE": 100_000}
    first = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    ended = place.call("search", place.config, limits=limit, first=first)
    ended.fails_clearly(1)
    assert [row[1] for row in points_of(place)] == ["running"]
    again = place.call("search", place.config)
    assert again.code == 0, again.err
    assert_same_search(whole, place)
