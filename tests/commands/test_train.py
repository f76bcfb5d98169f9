"""`mnft train` from the command line: what it learns, resuming, stopping, what it writes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_sample_weight
from support.images import write_image
from support.training import (
    Cli,
    Trainer,
    assert_same_run,
    assert_same_weights,
    epochs_of,
    interrupt_in_epoch,
    log_of,
)

from mnft.config.schema import ScheduleConfig
from mnft.data.batches.samplers import EpochSampler
from mnft.device.machine import Machine
from mnft.model.bundle import load_bundle
from mnft.reporter import SILENT
from mnft.results import EpochResult
from mnft.runs import writer as writer_module
from mnft.tasks import open_task
from mnft.tasks.classify.head import CrossEntropy
from mnft.tasks.classify.targets import compute_balanced_weights
from mnft.text import count
from mnft.training import fit as fit_module
from mnft.training.epoch.gradients import Gradients, LoopOptions
from mnft.training.epoch.loop import LoopResult, train_one_epoch
from mnft.training.fit import FitOptions, fit
from mnft.training.optim import Schedule
from mnft.training.state import TrainState, describe_state, load_state, save_state

# What it learns


def test_overfits_eight_images(run_cli: Cli, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(8):
            colour = (30 * index, 250 - 30 * index, (index % 3) * 100)
            path = tmp_path / "eight" / split / f"class{index % 4}" / f"{index}.png"
            write_image(path, colour, seed=index + 100 * (split == "val"))
    train = Trainer(run_cli, tmp_path, tmp_path / "eight")
    sets = ("train.epochs=40", "augment.hflip=0", "augment.scale=[1, 1]", "optim.lr=3e-3")
    result = train(*sets, name="eight")
    assert result.exit_code == 0, result.stderr
    log = epochs_of(train.run("eight"))
    assert log[-1]["train_accuracy"] == 1.0
    assert log[-1]["train_loss"] < 0.5 < 1.0 < log[0]["train_loss"]


def test_label_smoothing_class_weights_and_mixed_targets_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
    targets = torch.tensor([0, 1])
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    plain = -(log_p[0, 0] + log_p[1, 1])
    assert CrossEntropy(0.0, None)(logits, targets).item() == pytest.approx(plain.item())
    smooth = 0.7 * plain - 0.3 * log_p.mean(1).sum()
    assert CrossEntropy(0.3, None)(logits, targets).item() == pytest.approx(smooth.item())
    weighted = -(0.5 * log_p[0, 0] + 2 * log_p[1, 1])
    weights = torch.tensor([0.5, 2.0, 1.0])
    assert CrossEntropy(0.0, weights)(logits, targets).item() == pytest.approx(weighted.item())
    mixed = torch.tensor([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]])
    by_hand = -(0.25 * log_p[0, 0] + 0.75 * log_p[0, 1] + log_p[1, 1])
    assert CrossEntropy(0.0, None)(logits, mixed).item() == pytest.approx(by_hand.item())


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    weights = compute_balanced_weights(labels, 3)
    assert weights == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert [weights[label] for label in labels] == pytest.approx(
        compute_sample_weight("balanced", labels)
    )
    assert sum(weights[label] for label in labels) == pytest.approx(len(labels))


def test_the_first_loss_is_that_of_the_initial_model(train: Trainer) -> None:
    """Label smoothing and class weights reach the loss that is minimised and logged."""
    shutil.rmtree(train.folder / "images" / "train" / "red")
    for index in range(2):
        path = train.folder / "images" / "train" / "red" / f"{index}.png"
        write_image(path, (220, 30, 20), seed=900 + index)
    common = ("train.epochs=1", "train.batch_size=18", "augment.hflip=0", "augment.scale=[1, 1]")
    common += ("augment.ratio=[1, 1]", "optim.lr=1e-12")
    smooth, balanced = "train.label_smoothing=0.2", "train.class_weights=balanced"
    for name, extra in {"a": (), "b": (smooth,), "c": (balanced,)}.items():
        assert train(*common, *extra, name=name).exit_code == 0
    bundle = load_bundle(train.run("a") / "last")  # weights as at the start
    split = json.loads((train.run("a") / "split.json").read_text())
    samples = [s for s in split["samples"] if s["split"] == "train"]
    images = torch.stack([_pixels(Path(split["root"]) / s["path"]) for s in samples])
    targets = torch.tensor([split["class_names"].index(s["class_name"]) for s in samples])
    log_p = bundle.model((images - 0.5) / 0.5).log_softmax(1)
    own = log_p.gather(1, targets[:, None])[:, 0]
    expected = {
        "a": -own.mean(),
        "b": -(0.8 * own + 0.2 * log_p.mean(1)).mean(),
        "c": -(own * torch.tensor([18 / 24, 18 / 24, 18 / 6])[targets]).mean(),
    }
    for name, loss in expected.items():
        assert epochs_of(train.run(name))[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-4)


def _pixels(path: Path) -> torch.Tensor:
    from PIL import Image

    image = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def test_the_balanced_sampler_draws_every_class_equally_often() -> None:
    labels = [0] * 90 + [1] * 10
    per_class = compute_balanced_weights(labels, 2)
    sampler = EpochSampler(100, 10, seed=0, weights=[per_class[label] for label in labels])
    drawn = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn += [labels[key.position] for batch in sampler for key in batch]
    assert len(drawn) == 2000
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)


def test_accumulation_does_not_change_the_updates(train: Trainer) -> None:
    for steps in (1, 4):
        sets = (f"train.accumulation_steps={steps}", "train.batch_size=9", "optim.name=sgd")
        assert train(*sets, "train.label_smoothing=0.1", name=f"acc{steps}").exit_code == 0
    one, four = (load_file(train.run(f"acc{n}") / "last" / "model.safetensors") for n in (1, 4))
    for name, tensor in one.items():
        torch.testing.assert_close(four[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 9])
def test_no_part_of_the_last_batch_is_a_single_image(train: Trainer, batch_size: int) -> None:
    """MobileNetV4 has a BatchNorm behind its pooling, which needs two images."""
    for index in range(5):  # 19 images: a last batch of 3, or of 1, which is left out
        (train.folder / "images" / "train" / "red" / f"{index:03d}.png").unlink()
    sets = ("model.name=mobilenetv4_conv_small_035", "data.img_size=32", "train.epochs=1")
    result = train(*sets, "train.accumulation_steps=4", f"train.batch_size={batch_size}")
    assert result.exit_code == 0, result.stderr


def test_parts_of_one_image_are_explained(train: Trainer) -> None:
    sets = ("model.name=mobilenetv4_conv_small_035", "data.img_size=32", "train.epochs=1")
    result = train(*sets, "train.accumulation_steps=8")
    assert result.exit_code == 1
    assert "BatchNorm cannot learn from a single image" in result.stderr
    assert "train.accumulation_steps" in result.stderr


def test_clip_grad_bounds_the_update(train: Trainer) -> None:
    sgd = ("optim.name=momentum", "optim.momentum=0", "optim.lr=1", "train.epochs=1")
    one_update = (*sgd, "train.batch_size=24")
    assert train(*one_update, "optim.lr=1e-12", name="start").exit_code == 0
    assert train(*one_update, "train.clip_grad=0.01", name="clipped").exit_code == 0
    assert train(*one_update, name="free").exit_code == 0
    assert _distance(train, "clipped") == pytest.approx(0.01, rel=1e-3)
    assert _distance(train, "free") > 0.02


def _distance(train: Trainer, name: str) -> float:
    a, b = (load_file(train.run(run) / "last" / "model.safetensors") for run in ("start", name))
    return math.sqrt(sum((a[key] - b[key]).double().square().sum().item() for key in a))


def test_bf16_trains_on_the_cpu(train: Trainer) -> None:
    sets = ("train.precision=bf16", "eval.precision=bf16", "train.epochs=6")
    assert train(*sets, name="bf16").exit_code == 0
    log = log_of(train.run("bf16"))
    assert log[0]["precision"] == "bfloat16"
    assert log[-2]["train_loss"] < log[1]["train_loss"]
    weights = load_file(train.run("bf16") / "best" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_the_number_of_workers_changes_nothing(train: Trainer) -> None:
    sets = ("augment.color_jitter=0.4", "augment.policy=rand_augment", "augment.mixup=0.2")
    for workers in (0, 2):
        result = train(*sets, f"data.workers={workers}", name=f"w{workers}")
        assert result.exit_code == 0, result.stderr
    assert_same_run(train.run("w0"), train.run("w2"))


def test_the_saved_config_trains_the_same_run_again(train: Trainer, run_cli: Cli) -> None:
    sets = ("model.drop_rate=0.3", "augment.cutmix=1.0", "optim.lr=3e-3")
    assert train(*sets, name="first").exit_code == 0
    saved = train.run("first") / "config.yaml"
    again = run_cli("train", saved, "--set", "run.name=second")
    assert again.exit_code == 0, again.stderr
    assert_same_run(train.run("first"), train.run("second"))
    other = run_cli("train", saved, "--set", "run.name=third", "--set", "train.seed=1")
    assert other.exit_code == 0
    with pytest.raises(AssertionError):
        assert_same_weights(train.run("first"), train.run("third"))


# Resuming

CASES = {
    "everything": (
        "model.name=mobilenetv1_025",
        "data.img_size=32",
        "model.drop_rate=0.2",
        "augment.mixup=0.2",
        "augment.cutmix=1.0",
        "augment.color_jitter=0.4",
        "augment.random_erasing=0.5",
        "train.ema_decay=0.9",
        "train.sampler=balanced",
        "train.label_smoothing=0.1",
        "train.clip_grad=1.0",
        "schedule.name=cosine",
        "schedule.warmup_epochs=1.5",
        "optim.name=adamw",
        "optim.weight_decay=0.05",
    ),
    "plateau": (
        "schedule.name=plateau",
        "schedule.patience_epochs=1",  # so that epoch 2 leaves a count that epoch 3 needs
        "schedule.decay_rate=0.5",
        "eval.monitor=accuracy",
        "optim.lr=1e-7",
        "optim.name=sgd",
        "train.class_weights=balanced",
    ),
    "frozen": (
        "model.name=mobilenetv3_small_050",
        "data.img_size=32",
        "model.freeze=3",
        "model.drop_path_rate=0.2",
        "optim.layer_decay=0.7",
        "schedule.name=step",
        "schedule.decay_epochs=1",
        "eval.monitor=macro_f1",
        "train.accumulation_steps=2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    sets = (*CASES[case], "train.epochs=4")
    whole = train(*sets, name="whole")
    assert whole.exit_code == 0, whole.stderr
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3)
        stopped = train(*sets, name="cut")
    assert stopped.exit_code == 130
    assert f"mnft train --resume {Path('runs/cut')}" in stopped.stderr
    assert "after 2 epochs" in stopped.stderr
    assert len(epochs_of(train.run("cut"))) == 2
    resumed = train.resume("cut")
    assert resumed.exit_code == 0, resumed.stderr
    assert "resumed  after epoch 2" in resumed.stderr
    assert_same_run(train.run("whole"), train.run("cut"))
    events = [entry["event"] for entry in log_of(train.run("cut"))]
    assert events == ["start", "epoch", "epoch", "stop", "resume", "epoch", "epoch", "stop"]
    if case == "plateau":  # else the test would not see the state of the schedule
        rates = [entry["lr"] for entry in epochs_of(train.run("whole"))]
        assert rates == pytest.approx([1e-7, 1e-7, 1e-7, 5e-8])


def test_an_interrupt_before_the_first_epoch_is_done(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        stopped = train(name="cut")
    assert stopped.exit_code == 130
    assert "after 0 epochs and 3 updates of the next; resume with" in stopped.stderr
    assert train.resume("cut").exit_code == 0
    assert train(name="whole").exit_code == 0
    assert_same_run(train.run("whole"), train.run("cut"))


class Killed(BaseException):
    """The process ends here; nothing that follows is done."""


HOW = {"store": (), "files": ("data.store=off",), "workers": ("data.store=off", "data.workers=2")}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_run_killed_within_an_epoch_goes_on_from_the_very_update(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, at: int, how: str
) -> None:
    """Each update is saved; the process dies right after one of them."""
    sets = (*CASES["everything"], *HOW[how], "run.snapshot_minutes=1e-9")
    saved = 0

    def save_and_die(content: dict[str, Any], path: Path) -> None:
        nonlocal saved
        save_state(content, path)
        saved += content["partial"] is not None
        if content["partial"] is not None and saved == at:
            raise Killed

    assert train(*sets, name="whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "save_state", save_and_die)
        with pytest.raises(Killed):
            train(*sets, name="cut")
    resumed = train.resume("cut")
    assert resumed.exit_code == 0, resumed.stderr
    epoch, update = divmod(at, 3)
    assert (
        f"resumed  after epoch {epoch} and {count(update or 3, 'update')}," in resumed.stderr
        or not update
    )
    assert_same_run(train.run("whole"), train.run("cut"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
def test_a_signal_within_an_epoch_saves_and_stops_at_once(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    updates = 0

    def signalled(*args: Any) -> None:
        nonlocal updates
        update(*args)
        updates += 1
        if updates == 5:
            os.kill(os.getpid(), number)

    update = Gradients.apply
    assert train(*CASES["everything"], name="whole").exit_code == 0
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Gradients, "apply", signalled)
        stopped = train(*CASES["everything"], name="cut")
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.exit_code == code
    assert updates == 5
    assert "after 1 epoch and 2 updates of the next; resume with" in stopped.stderr
    assert train.resume("cut").exit_code == 0
    assert_same_run(train.run("whole"), train.run("cut"))


def test_a_second_signal_does_not_wait_for_the_update(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on after the second signal")

    with monkeypatch.context() as patch:
        patch.setattr(Gradients, "apply", signalled)
        stopped = train(name="cut")
    assert stopped.exit_code == 143
    assert "after 0 epochs; resume with" in stopped.stderr


def test_a_run_whose_state_is_gone_does_not_begin_again(train: Trainer) -> None:
    assert train(name="run").exit_code == 0
    best = train.run("run") / "best" / "model.safetensors"
    for state in train.run("run").glob("resume*.pt"):
        state.unlink()
    before = best.read_bytes()
    resumed = train.resume("run")
    assert resumed.exit_code == 1
    assert "no such file" in resumed.stderr
    assert best.read_bytes() == before


@pytest.mark.parametrize(("what", "kept"), [("save_state", 0), ("log_epoch", 1)])
def test_an_interrupt_while_an_epoch_is_saved(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, what: str, kept: int
) -> None:
    """Before the state is written the epoch is lost, after it only its log line, which returns."""
    assert train(name="whole").exit_code == 0

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, what, interrupted)
        stopped = train(name="cut")
    assert stopped.exit_code == 130
    assert epochs_of(train.run("cut")) == []
    assert f"after {count(kept, 'epoch')}; resume with" in stopped.stderr
    if kept:
        assert train.resume("cut").exit_code == 0
        assert_same_run(train.run("whole"), train.run("cut"))


def test_a_crash_leaves_half_a_log_line(train: Trainer) -> None:
    assert train(name="whole").exit_code == 0
    assert train(name="cut").exit_code == 0
    log = train.run("cut") / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    future = json.dumps({**json.loads(lines[1]), "epoch": 9}).encode() + b"\n"
    log.write_bytes(lines[0] + lines[1] + future + '{"event": "epoch", "é'.encode()[:-1])
    result = train.resume("cut")
    assert result.exit_code == 0, result.stderr
    assert epochs_of(train.run("cut")) == epochs_of(train.run("whole"))


def test_extending_without_a_schedule_equals_a_longer_run(train: Trainer) -> None:
    assert train("train.epochs=4", name="long").exit_code == 0
    assert train("train.epochs=2", name="short").exit_code == 0
    again = train.resume("short")
    assert again.exit_code == 0
    assert "has its 2 epochs already" in again.stderr
    assert train.resume("short", "train.epochs=4").exit_code == 0
    assert_same_weights(train.run("long"), train.run("short"))
    figures = [
        [{**entry, "epochs": 4} for entry in epochs_of(train.run(name))]
        for name in ("long", "short")
    ]
    assert figures[0] == figures[1]
    saved = yaml.safe_load((train.run("short") / "config.yaml").read_text())
    assert saved["train"]["epochs"] == 4


def test_extending_with_cosine_takes_the_rates_of_the_new_total(train: Trainer) -> None:
    cosine = ("schedule.name=cosine", "schedule.warmup_epochs=1")
    assert train(*cosine, "train.epochs=6", name="long").exit_code == 0
    assert train(*cosine, "train.epochs=3", name="short").exit_code == 0
    assert train.resume("short", "train.epochs=6").exit_code == 0
    long, short = ([e["lr"] for e in epochs_of(train.run(n))] for n in ("long", "short"))
    assert short[3:] == long[3:]
    assert short[2] < long[2]


@pytest.mark.parametrize(
    "change",
    ["optim.lr=0.5", "train.batch_size=4", "model.name=resnet18", "data.crop_mode=squash"],
)
def test_resume_refuses_other_settings(train: Trainer, change: str) -> None:
    assert train(name="run").exit_code == 0
    result = train.resume("run", change, "train.epochs=3")
    assert result.exit_code == 2
    assert f"{change.partition('=')[0]} cannot change" in result.stderr
    assert "train.epochs" in result.stderr.partition("hint:")[2]
    assert len(epochs_of(train.run("run"))) == 2


def test_resume_refuses_other_images(train: Trainer) -> None:
    assert train(name="run").exit_code == 0
    write_image(train.folder / "images/val/red/000.png", (0, 0, 0), seed=1)
    (train.folder / "images/train/red/001.png").unlink()
    result = train.resume("run", "train.epochs=3")
    assert result.exit_code == 1
    assert "2 images changed since the run began" in result.stderr
    assert "val/red/000.png: its content has changed" in result.stderr
    assert "train/red/001.png: No such file" in result.stderr


def test_resume_refuses_a_damaged_state(train: Trainer) -> None:
    assert train(name="run").exit_code == 0
    for state in train.run("run").glob("resume*.pt"):
        state.unlink() if state.name == "resume-1.pt" else state.write_bytes(b"PK" + bytes(999))
    result = train.resume("run", "train.epochs=3")
    assert result.exit_code == 1
    assert "damaged resume state" in result.stderr


@pytest.mark.parametrize("how", ["cut", "one bit", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(
    train: Trainer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    assert train("train.epochs=2", name="whole").exit_code == 0
    assert train("train.epochs=2", name="cut").exit_code == 0
    state = train.run("cut") / "resume.pt"
    content = bytearray(state.read_bytes())
    state.unlink()  # the state before it has a name of its own, and may share the file
    if how == "cut":
        state.write_bytes(content[:-1000])
    elif how == "one bit":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    result = train.resume("cut")
    assert result.exit_code == 0, result.stderr
    assert "resuming from resume-1.pt, the state before it" in caplog.text
    assert "resumed  after epoch 1," in result.stderr
    assert_same_run(train.run("whole"), train.run("cut"))


def test_resume_from_within_the_run(
    train: Trainer, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(name="run").exit_code == 0
    monkeypatch.chdir(train.run("run"))
    result = run_cli("train", "--resume", ".", "--set", "train.epochs=3")
    assert result.exit_code == 0, result.stderr
    assert len(epochs_of(train.run("run"))) == 3
    assert run_cli("train", "--resume", "best").exit_code == 0


def test_resume_and_a_config_exclude_each_other(train: Trainer, run_cli: Cli) -> None:
    assert run_cli("train").exit_code == 2
    assert run_cli("train", train.config, "--resume", "runs/x").exit_code == 2
    missing = run_cli("train", "--resume", "runs/x")
    assert missing.exit_code == 1
    assert "runs/x does not exist" in missing.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_a_real_process_and_it_can_be_resumed(
    train: Trainer, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "mnft", "train", str(train.config)]
    command += ["--set", "run.name=cut", "--set", "train.epochs=300"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=train.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 120
        while not (train.run("cut") / "resume.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert b"mnft train --resume runs/cut" in err
    assert out == b""
    done = len(epochs_of(train.run("cut")))
    assert train.resume("cut", f"train.epochs={done + 1}").exit_code == 0
    assert train(f"train.epochs={done + 1}", name="whole").exit_code == 0
    assert_same_weights(train.run("whole"), train.run("cut"))


# Going wrong


def test_a_loss_that_is_not_finite_keeps_the_best_model(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(state: TrainState, *args: Any, **kwargs: Any) -> LoopResult:
        if len(state.history) == 1:
            with torch.no_grad():
                next(state.model.parameters()).fill_(math.nan)
        return train_one_epoch(state, *args, **kwargs)

    monkeypatch.setattr(fit_module, "train_one_epoch", poisoned)
    result = train("train.epochs=3", name="run")
    assert result.exit_code == 1
    assert "the training loss became nan" in result.stderr
    assert "optim.lr" in result.stderr.partition("hint:")[2]
    bundle = load_bundle(train.run("run") / "best")
    assert bundle.record["result"]["epoch"] == 1
    assert all(p.isfinite().all() for p in bundle.model.parameters())
    assert log_of(train.run("run"))[-1]["reason"] == "TrainError"


@pytest.mark.parametrize("model", ["lenet5", "mobilenetv1_025"])
def test_a_learning_rate_far_too_high(train: Trainer, model: str) -> None:
    sets = (f"model.name={model}", "data.img_size=32", "optim.name=sgd", "optim.lr=1e38")
    result = train(*sets, "train.epochs=5", name="run")
    assert result.exit_code == 1
    assert "the weights are lost" in result.stderr
    assert not (train.run("run") / "best").exists()
    assert result.stdout == ""


def test_outputs_that_are_not_finite_in_evaluation(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update of an epoch can break a model whose training loss was still finite."""

    def poisoned(state: TrainState, *args: Any, **kwargs: Any) -> LoopResult:
        result = train_one_epoch(state, *args, **kwargs)
        with torch.no_grad():
            next(state.model.parameters()).fill_(math.inf)
        return result

    monkeypatch.setattr(fit_module, "train_one_epoch", poisoned)
    result = train(name="run")
    assert result.exit_code == 1
    assert "outputs on the val split are not finite" in result.stderr
    assert not (train.run("run") / "best").exists()


def test_an_image_that_vanishes_during_the_run(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(*args: Any, **kwargs: Any) -> LoopResult:
        (train.folder / "images/val/red/003.png").unlink(missing_ok=True)
        return train_one_epoch(*args, **kwargs)

    monkeypatch.setattr(fit_module, "train_one_epoch", removed)
    result = train("data.store=off", name="run")
    assert result.exit_code == 1
    assert "val/red/003.png" in result.stderr
    assert "has the folder changed?" in result.stderr


def test_an_image_that_vanishes_is_not_missed_where_it_is_stored(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(name="whole").exit_code == 0

    def removed(*args: Any, **kwargs: Any) -> LoopResult:
        for path in (train.folder / "images").glob("*/*/003.png"):
            path.unlink()
        return train_one_epoch(*args, **kwargs)

    monkeypatch.setattr(fit_module, "train_one_epoch", removed)
    assert train(name="cut").exit_code == 0
    assert_same_run(train.run("whole"), train.run("cut"))


# The best epoch and stopping


def run_fit(
    monkeypatch: pytest.MonkeyPatch,
    metrics: list[dict[str, float]],
    *,
    monitor: str,
    early_stopping: int | None = None,
) -> tuple[list[EpochResult], bool]:
    """`fit` with training left out and scripted figures of each epoch."""
    model = torch.nn.Linear(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(optimizer, ScheduleConfig(), epochs=9, updates_per_epoch=1, mode="max")
    state = TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    loop = LoopOptions(Machine(torch.device("cpu")), open_task(("a", "b")))
    options = FitOptions(len(metrics), monitor, early_stopping, 0, loop)
    scripted = iter(metrics)
    trained = LoopResult({"loss": 1.0, "accuracy": 0.5}, 4, 1.0)
    monkeypatch.setattr(fit_module, "train_one_epoch", lambda *_, **__: trained)
    monkeypatch.setattr(fit_module, "evaluate", lambda *_: (next(scripted), {}))

    class Train:
        sampler = EpochSampler(4, 2, seed=0)

    criterion = CrossEntropy(0.0, None)
    arguments: Any = (state, model, Train(), [], criterion, options)
    result = fit(*arguments, checkpointer=None, reporter=SILENT)
    return result.epochs, result.stopped_early


def figures(**columns: list[float]) -> list[dict[str, float]]:
    count = len(next(iter(columns.values())))
    whole = {"loss": [1.0] * count, "accuracy": [0.5] * count, "macro_f1": [0.5] * count} | columns
    return [dict(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True)]


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("accuracy", [0.5, 0.7, 0.65, 0.6], [1, 2]),
        ("macro_f1", [0.5, 0.4, 0.45, 0.9], [1, 4]),
        ("loss", [0.9, 0.7, 0.75, 0.6], [1, 2, 4]),
    ],
)
def test_the_best_epoch_is_the_better_one(
    monkeypatch: pytest.MonkeyPatch, monitor: str, values: list[float], best: list[int]
) -> None:
    epochs, _ = run_fit(monkeypatch, figures(**{monitor: values}), monitor=monitor)
    assert [result.epoch for result in epochs if result.is_best] == best


@pytest.mark.parametrize("monitor", ["accuracy", "macro_f1"])
def test_ties_go_to_the_lower_loss_and_then_to_the_later_epoch(
    monkeypatch: pytest.MonkeyPatch, monitor: str
) -> None:
    columns = {monitor: [0.5, 0.7, 0.7, 0.7, 0.7, 0.6], "loss": [0.3, 0.6, 0.45, 0.5, 0.45, 0.1]}
    epochs, _ = run_fit(monkeypatch, figures(**columns), monitor=monitor)
    assert [result.epoch for result in epochs if result.is_best] == [1, 2, 3, 5]


def test_of_equal_losses_the_later_epoch_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the accuracy: it is not what was asked for."""
    columns = {"loss": [0.5, 0.5, 0.6, 0.5], "accuracy": [0.9, 0.5, 0.5, 0.4]}
    epochs, _ = run_fit(monkeypatch, figures(**columns), monitor="loss")
    assert [result.epoch for result in epochs if result.is_best] == [1, 2, 4]


def test_a_falling_loss_under_an_equal_accuracy_is_no_improvement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best epoch moves on, patience runs out."""
    columns = {"accuracy": [0.5, 0.6, 0.6, 0.6, 0.7], "loss": [0.9, 0.8, 0.7, 0.6, 0.5]}
    epochs, stopped = run_fit(monkeypatch, figures(**columns), monitor="accuracy", early_stopping=2)
    assert ([result.epoch for result in epochs if result.is_best], stopped) == ([1, 2, 3, 4], True)


@pytest.mark.parametrize(
    ("values", "patience", "trained", "stopped"),
    [
        ([0.5, 0.6, 0.6, 0.6, 0.7, 0.8], 2, 4, True),
        ([0.5, 0.6, 0.5, 0.7, 0.6, 0.6], 2, 6, True),
        ([0.5, 0.6, 0.5, 0.7, 0.6, 0.8], 2, 6, False),
        ([0.5, 0.5, 0.5], None, 3, False),
        ([0.5, 0.5, 0.6], 1, 2, True),
    ],
)
def test_early_stopping(
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    patience: int | None,
    trained: int,
    stopped: bool,
) -> None:
    epochs, stopped_early = run_fit(
        monkeypatch, figures(accuracy=values), monitor="accuracy", early_stopping=patience
    )
    assert (len(epochs), stopped_early) == (trained, stopped)


def test_early_stopping_of_a_run_and_more_patience_on_resume(train: Trainer) -> None:
    sets = ("train.epochs=5", "train.early_stopping=1", "optim.lr=1e-12", "eval.monitor=accuracy")
    result = train(*sets, name="run", json=True)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    # The weights hardly change: no improvement, and of equal epochs the later one is kept.
    assert (answer["stopped_early"], answer["best_epoch"], answer["epochs"]) == (True, 2, 2)
    assert log_of(train.run("run"))[-1]["reason"] == "early stopping"
    assert load_bundle(train.run("run") / "best").record["result"]["epoch"] == 2
    assert load_bundle(train.run("run") / "last").record["result"]["epoch"] == 2
    assert train.resume("run").exit_code == 0
    assert len(epochs_of(train.run("run"))) == 2
    assert train.resume("run", "train.early_stopping=3").exit_code == 0
    assert len(epochs_of(train.run("run"))) == 4


# The learning rate


def rates(config: ScheduleConfig, metrics: list[float], updates_per_epoch: int = 2) -> list[float]:
    """The rate of every update, over as many epochs as there are metrics."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(
        optimizer, config, epochs=len(metrics), updates_per_epoch=updates_per_epoch, mode="max"
    )
    seen = []
    for epoch, metric in enumerate(metrics, start=1):
        for update in range(updates_per_epoch):
            seen.append(schedule.lr)
            schedule.after_update((epoch - 1) * updates_per_epoch + update + 1)
        schedule.after_epoch(epoch, metric)
    return seen


def test_schedules() -> None:
    flat = [0.5] * 4
    assert rates(ScheduleConfig(), flat) == [1.0] * 8
    warm = ScheduleConfig(warmup_epochs=2.0, warmup_lr=0.0)
    assert rates(warm, flat) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    cosine = [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates(ScheduleConfig(name="cosine"), flat) == pytest.approx(cosine)
    # Warmup takes the place of the schedule's first epochs, so cosine has begun to fall after it.
    warm = ScheduleConfig(name="cosine", warmup_epochs=1.0, warmup_lr=0.0)
    assert rates(warm, flat) == pytest.approx([0, 0.5, *cosine[2:]])
    step = ScheduleConfig(name="step", decay_epochs=2.0, decay_rate=0.5)
    assert rates(step, flat) == pytest.approx([1] * 4 + [0.5] * 4)
    multistep = ScheduleConfig(name="multistep", decay_milestones=[1, 3], decay_rate=0.5)
    assert rates(multistep, flat) == pytest.approx([1] * 2 + [0.5] * 4 + [0.25] * 2)


def test_plateau_decays_when_the_metric_stands_still() -> None:
    config = ScheduleConfig(name="plateau", patience_epochs=1, decay_rate=0.5, min_lr=0.2)
    seen = rates(config, [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], updates_per_epoch=1)
    assert seen == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2])
    warm = ScheduleConfig(name="plateau", patience_epochs=0, warmup_epochs=2.0, warmup_lr=0.0)
    seen = rates(warm, [0.5, 0.5, 0.5, 0.5, 0.5])
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.1 * 10, 1, 0.1, 0.1])


@pytest.mark.parametrize("stopped_after", [1, 4, 7, 8, 13])
@pytest.mark.parametrize("name", ["none", "cosine", "step", "multistep", "poly", "plateau"])
def test_rates_after_a_resume_are_those_of_the_uninterrupted_run(
    tmp_path: Path, name: Any, stopped_after: int
) -> None:
    """Of two groups of layer-wise decay, stopped within warmup, at its end and after it."""
    config = ScheduleConfig(
        name=name,
        warmup_epochs=2.5,
        decay_epochs=3.0,
        decay_milestones=[3, 4],
        patience_epochs=0,
        decay_rate=0.5,
    )
    metrics = [0.5, 0.6, 0.7, 0.7, 0.6]  # plateau decays after the fourth epoch

    def build() -> TrainState:
        model = torch.nn.Linear(1, 1)
        groups = [{"params": [model.weight], "lr_scale": 0.5}, {"params": [model.bias]}]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        schedule = Schedule(optimizer, config, epochs=len(metrics), updates_per_epoch=3, mode="max")
        return TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))

    def run(state: TrainState, until: int) -> list[list[float]]:
        """The rates of each update and group."""
        seen = []
        for update in range(state.num_updates, until):
            seen.append([group["lr"] for group in state.optimizer.param_groups])
            state.num_updates = update + 1
            state.schedule.after_update(update + 1)
            if (update + 1) % 3 == 0:
                state.schedule.after_epoch((update + 1) // 3, metrics[update // 3])
        return seen

    expected = run(build(), 15)
    assert len({rate for rate, _ in expected}) > 7
    stopped, resumed = build(), build()
    assert run(stopped, stopped_after) == expected[:stopped_after]
    save_state(describe_state(stopped), tmp_path / "resume.pt")
    load_state(resumed, tmp_path / "resume.pt")
    assert run(resumed, 15) == expected[stopped_after:]


def test_plateau_that_raises_the_rate_is_refused(train: Trainer) -> None:
    result = train("schedule.name=plateau", "schedule.decay_rate=1.5")
    assert result.exit_code == 2
    assert "schedule.decay_rate" in result.stderr


# What it writes and says


def test_stdout_is_the_path_of_the_best_model_alone(train: Trainer) -> None:
    result = train(name="run")
    assert result.stdout == f"{Path('runs/run/best')}\n"
    assert "epoch 1/2" in result.stderr
    assert "\x1b" not in result.stderr
    run = train.run("run")
    assert {entry.name for entry in run.iterdir()} == {
        *("config.yaml", "written.yaml", "split.json", "log.jsonl", "resume.pt"),
        *("resume-1.pt", "best", "last", "training_curve.png"),
    }
    start, *epochs, stop = log_of(run)
    assert (start["event"], start["device"], start["updates_per_epoch"]) == ("start", "cpu", 3)
    assert [entry["epoch"] for entry in epochs] == [1, 2]
    assert stop == {"event": "stop", "reason": "all epochs done"}


def test_json_is_one_object(train: Trainer) -> None:
    result = train(name="run", json=True)
    answer = json.loads(result.stdout)
    assert answer["best"] == str(Path("runs/run/best"))
    assert answer["epochs"] == 2
    best = epochs_of(train.run("run"))[answer["best_epoch"] - 1]
    for key in ("val_accuracy", "val_macro_f1", "val_loss"):
        assert answer[key] == best[key]


def test_a_name_that_is_taken(train: Trainer) -> None:
    assert train(name="run").exit_code == 0
    before = (train.run("run") / "log.jsonl").read_bytes()
    result = train(name="run")
    assert result.exit_code == 2
    assert "runs/run exists already" in result.stderr
    assert "mnft train --resume runs/run" in result.stderr
    assert (train.run("run") / "log.jsonl").read_bytes() == before


def test_default_names_are_numbered(train: Trainer) -> None:
    for name in ("small", "small-2", "small-3"):
        result = train("train.epochs=1")
        assert result.stdout == f"{Path('runs') / name / 'best'}\n"


def test_run_dir_is_a_file(train: Trainer) -> None:
    (train.folder / "runs").write_text("")
    result = train(name="run")
    assert result.exit_code == 2
    assert "runs is a file" in result.stderr


def test_nothing_is_left_of_a_run_that_could_not_begin(train: Trainer) -> None:
    (train.folder / "images/train/red/000.png").write_bytes(b"not an image")
    assert train(name="run").exit_code == 1
    assert train("model.kwargs={nonsense: 1}", "data.on_bad_image=skip", name="run").exit_code == 1
    assert not train.run("run").exists()
    assert train("data.on_bad_image=skip", name="run").exit_code == 0


@pytest.mark.parametrize(("value", "written"), [("null", True), ("true", True), ("false", False)])
def test_tensorboard(train: Trainer, value: str, written: bool) -> None:
    pytest.importorskip("tensorboard")
    assert train(f"run.tensorboard={value}", name="run").exit_code == 0
    events = list(train.run("run").glob("tensorboard/events.out.tfevents.*"))
    assert bool(events) == written
    if written:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(train.run("run") / "tensorboard"))
        reader.Reload()
        losses = [event.value for event in reader.Scalars("train/loss")]
        assert losses == pytest.approx([e["train_loss"] for e in epochs_of(train.run("run"))])


def test_early_stopping_is_said_and_so_is_a_resume_that_cannot_go_on(train: Trainer) -> None:
    sets = ("train.epochs=9", "train.early_stopping=1", "optim.lr=1e-9")
    done = train(*sets, name="run")
    assert "stopped early: no better val accuracy for 1 epoch\n" in done.stderr
    again = train.resume("run")
    assert "the run stopped early; a larger --set train.early_stopping=N" in again.stderr


def test_a_resumed_run_cannot_have_fewer_epochs(train: Trainer) -> None:
    train("train.epochs=2", name="run")
    refused = train.resume("run", "train.epochs=1")
    assert refused.exit_code == 2
    assert "train.epochs=1: found 1, expected at least the 2 epochs done" in refused.stderr


def test_out_of_memory_is_a_message(train: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr("mnft.training.fit.train_one_epoch", fail)
    result = train(name="run")
    assert result.exit_code == 1
    assert "too little memory: CUDA out of memory" in result.stderr
    assert "data.img_size" in result.stderr
