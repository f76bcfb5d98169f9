"""SIGTERM, SIGUSR1 and Ctrl-C at several moments: the exit code, the time it takes, resuming."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from faults_support import Place, Warm, assert_same_run

pytestmark = pytest.mark.faults

STAGES = {
    "model": {"name": "mobilenetv2_035"},
    "data": {"img_size": 32},
    "train": {"epochs": 2, "stages": ["head", "finetune"]},
}
# In the middle of an evaluation, which none of the points is.
IN_EVALUATION = """
import os, signal
import mnft.training.fit as fit
run = fit.run_model
def run_model(model, batches, *args):
    def cut():
        yield next(iter(batches))
        os.kill(os.getpid(), signal.{signal})
        yield from ()
    return run(model, cut(), *args)
fit.run_model = run_model
"""
MOMENTS = {
    "store": {"at": 3, "name": "in the middle of writing pixels.bin"},
    "head": {"at": 50, "name": "optimizer step"},
    "epoch": {"at": 203, "name": "optimizer step"},
    "evaluation": {"first": IN_EVALUATION},
    "best model": {"at": 2, "name": "in the middle of a weights file"},
    "state": {"at": 9, "name": "in the middle of writing .resume.pt"},
    "log": {"at": 1, "name": "in the middle of writing log.jsonl"},
}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, warm: Warm, fault_images: Path
) -> Callable[[], Path]:
    """An uninterrupted run."""
    made: list[Path] = []

    def make() -> Path:
        if not made:
            place = Place(tmp_path_factory.mktemp("whole"), warm, fault_images, **STAGES)
            ended = place.train()
            assert ended.code == 0, ended.err
            made.append(place.run)
        return made[0]

    return make


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 143),
        pytest.param("SIGUSR1", 143, marks=pytest.mark.slow),
        pytest.param("SIGINT", 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_within_seconds_and_loses_nothing(
    moment: str,
    name: str,
    code: int,
    whole: Callable[[], Path],
    tmp_path: Path,
    warm: Warm,
    fault_images: Path,
) -> None:
    place = Place(tmp_path / "place", warm, fault_images, **STAGES)
    spec = dict(MOMENTS[moment])
    if "first" in spec:
        spec["first"] = str(spec["first"]).format(signal=name)
    stopped = place.train(signal=name, **spec)
    by = "Ctrl-C" if name == "SIGINT" else name
    stopped.fails_clearly(code, f"by {by}")
    if place.run.exists():
        assert f"resume with: mnft train --resume {Path('runs/run')}" in stopped.err
    assert stopped.seconds < 20
    resumed = place.go_on()
    assert resumed.code == 0, resumed.err
    assert_same_run(whole(), place.run)


@pytest.mark.parametrize("moment", ["epoch", "best model"])
def test_ctrl_c_twice_stops_now(
    moment: str, whole: Callable[[], Path], tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    place = Place(tmp_path / "place", warm, fault_images, **STAGES)
    stopped = place.train(signal="SIGINT", times=2, **MOMENTS[moment])
    stopped.fails_clearly(130, "by Ctrl-C")
    resumed = place.resume()
    assert resumed.code == 0, resumed.err
    assert_same_run(whole(), place.run)


def test_a_signal_to_the_whole_group_as_schedulers_send_it(
    tmp_path: Path, warm: Warm, fault_images: Path
) -> None:
    """The processes that load images get it too, and may end before the training hears of it."""
    files = {
        "data": {"store": "off", "workers": 2},
        "train": {"epochs": 3, "batch_size": 2},
        "run": {"name": "run", "tensorboard": False},
    }
    whole = Place(tmp_path / "whole", warm, fault_images, **files)
    assert whole.train().code == 0
    place = Place(tmp_path / "place", warm, fault_images, **files)
    process = place.start_training()
    process.until("epoch 1/3")
    process.kill(signal.SIGTERM, group=True)
    process.wait().fails_clearly(143, "by SIGTERM", "resume with")
    resumed = place.resume()
    assert resumed.code == 0, resumed.err
    assert_same_run(whole.run, place.run)
