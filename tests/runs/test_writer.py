"""When epochs are saved: short ones together, the last one always, whatever ends the training."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.images import MakeFolder
from support.training import Trainer, assert_same_run, epochs_of, interrupt_in_epoch, log_of
from torch import nn
from typer.testing import Result

from mnft import console
from mnft.errors import DataError
from mnft.model.bundle import load_bundle
from mnft.results import EpochResult
from mnft.runs import writer
from mnft.tasks.classify.metrics import EpochMetrics
from mnft.training import fit as fit_module
from mnft.training.state import copy_to_cpu

EMA = ("model.name=mobilenetv1_025", "data.img_size=32", "train.ema_decay=0.9")


@pytest.fixture
def train(run_cli: Callable[..., Result], make_folder: MakeFolder, tmp_path: Path) -> Trainer:
    return Trainer(run_cli, tmp_path, make_folder(splits=("train", "val"), per_class=4))


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many epochs were finished at each save of a state."""
    found: list[int] = []
    save = writer.save_state

    def save_state(content: dict[str, Any], path: Path) -> None:
        found.append(len(content["history"]))
        save(content, path)

    monkeypatch.setattr(writer, "save_state", save_state)
    return found


def best_until(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let every epoch be better than the one before up to this one, and none after it."""

    def is_better(_metrics: EpochMetrics, best: EpochResult | None, _monitor: str) -> bool:
        return best is None or best.epoch < epoch

    monkeypatch.setattr(fit_module, "_is_better", is_better)


@pytest.mark.parametrize("sets", [(), EMA], ids=["plain", "average"])
def test_short_epochs_are_saved_together(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, saves: list[int], sets: tuple[str, ...]
) -> None:
    """The first at once, the others at the end: the same files as if each had been saved."""
    best_until(monkeypatch, 3)  # held in memory while epochs 4 and 5 are trained
    assert train(*sets, "train.epochs=5", name="together").exit_code == 0
    assert saves == [1, 5]
    saves.clear()
    monkeypatch.setattr(writer, "SAVE_INTERVAL_S", 0.0)
    assert train(*sets, "train.epochs=5", name="each").exit_code == 0
    assert saves == [1, 2, 3, 4, 5]
    assert_same_run(train.run("each"), train.run("together"))
    assert load_bundle(train.run("together") / "best").record["result"]["epoch"] == 3
    assert load_bundle(train.run("together") / "last").record["result"]["epoch"] == 5


def test_an_epoch_that_ends_later_is_saved(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, saves: list[int]
) -> None:
    now = 0.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    def two_seconds_pass(*args: Any) -> None:
        nonlocal now
        now += 2
        log(*args)

    log = writer.log_epoch
    monkeypatch.setattr(writer, "time", Clock)
    monkeypatch.setattr(writer, "log_epoch", two_seconds_pass)
    assert train("train.epochs=8", name="run").exit_code == 0
    assert saves == [1, 4, 7, 8]  # at 0, 6 and 12 seconds, and at the end


def test_early_stopping_saves(train: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    best_until(monkeypatch, 2)
    assert train("train.epochs=9", "train.early_stopping=2", name="run").exit_code == 0
    state = torch.load(train.run("run") / "resume.pt", weights_only=True)
    epochs = len(epochs_of(train.run("run")))
    assert 3 <= epochs == len(state["history"]) < 9
    assert load_bundle(train.run("run") / "best").record["result"]["epoch"] == 2
    assert load_bundle(train.run("run") / "last").record["result"]["epoch"] == epochs


@pytest.mark.parametrize("sets", [(), EMA], ids=["plain", "average"])
def test_an_error_leaves_the_last_finished_epoch(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, saves: list[int], sets: tuple[str, ...]
) -> None:
    """Not the weights of the epoch that failed, which have changed since."""
    sets = (*sets, "train.epochs=4")
    best_until(monkeypatch, 2)
    assert train(*sets, name="whole").exit_code == 0
    saves.clear()
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 4, DataError("an image is lost"))
        failed = train(*sets, name="cut")
    assert failed.exit_code == 1
    assert "an image is lost" in failed.stderr
    assert saves == [1, 3]
    assert load_bundle(train.run("cut") / "best").record["result"]["epoch"] == 2
    assert load_bundle(train.run("cut") / "last").record["result"]["epoch"] == 3
    resumed = train.resume("cut")
    assert "resumed  after epoch 3," in resumed.stderr
    assert_same_run(train.run("whole"), train.run("cut"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_between_two_epochs_saves(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    def signalled(display: console.TrainingDisplay, result: EpochResult) -> None:
        if result.epoch == 3:
            os.kill(os.getpid(), number)

    assert train("train.epochs=4", name="whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(console.TrainingDisplay, "on_epoch", signalled)
        stopped = train("train.epochs=4", name="cut")
    assert stopped.exit_code == code
    assert "after 3 epochs; resume with" in stopped.stderr
    assert train.resume("cut").exit_code == 0
    assert_same_run(train.run("whole"), train.run("cut"))


def test_the_models_of_finished_epochs_come_before_a_state_within_the_next(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a state calls the best epoch is on the disk, also when a signal comes at once."""
    best_until(monkeypatch, 2)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3)
        assert train("train.epochs=4", name="cut").exit_code == 130
    state = torch.load(train.run("cut") / "resume.pt", weights_only=True)
    assert (len(state["history"]), state["best"]["epoch"]) == (2, 2)
    assert state["partial"] is not None
    for name in ("best", "last"):
        assert load_bundle(train.run("cut") / name).record["result"]["epoch"] == 2


def test_a_full_disk_does_not_hide_what_ended_the_training(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, saves: list[int]
) -> None:
    save = writer.save_state

    def is_full(content: dict[str, Any], path: Path) -> None:
        if len(content["history"]) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path)

    monkeypatch.setattr(writer, "save_state", is_full)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3, DataError("an image is lost"))
        failed = train("train.epochs=4", name="run")
    assert failed.exit_code == 1
    assert "an image is lost" in failed.stderr
    assert "No space" not in failed.stderr
    assert log_of(train.run("run"))[-1]["message"] == "an image is lost"
    failed = train("train.epochs=4", name="other")
    assert failed.exit_code == 1
    assert "No space left" in failed.stderr


def test_a_copy_stays_as_it_was() -> None:
    model = nn.BatchNorm1d(3)
    content = {"model": model.state_dict(), "groups": [{"lr": 0.1, "params": [0]}], "best": None}
    copied = copy_to_cpu(content)
    with torch.no_grad():
        model.weight.fill_(7)
    content["groups"][0]["lr"] = 0.2
    assert copied["model"]["weight"].tolist() == [1, 1, 1]
    assert copied["groups"] == [{"lr": 0.1, "params": [0]}]
    assert copied["best"] is None
    assert copied["model"]._metadata == model.state_dict()._metadata
