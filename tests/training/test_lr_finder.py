"""The learning rate range test: what it suggests, when it stops, and what it writes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.images import MakeFolder
from torch import nn

from mnft.commands import find_lr as command
from mnft.config.schema import OptimConfig, ScheduleConfig
from mnft.data.batches.batch import Batch
from mnft.data.batches.samplers import EpochSampler
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import Ranks
from mnft.device.ranks.group import Group
from mnft.errors import ConfigError, MnftError, TrainError
from mnft.model.lenet import lenet5
from mnft.reporter import SILENT
from mnft.tasks.base import Loss, Task
from mnft.tasks.classify.head import CrossEntropy
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.probes.lr_finder import (
    LrCurve,
    build_curve,
    find_lr,
    find_valley,
)
from mnft.training.probes.lr_plot import plot_lr_curve
from mnft.training.state import TrainState
from mnft.training.training import Training

CPU = torch.device("cpu")
SGD = OptimConfig(name="momentum", momentum=0.0, lr=0.01)
# The only thing that the test asks of a task: the loss, as the first of its figures.
TASK = cast(Task, SimpleNamespace(sum_batch=lambda loss, _outputs, _targets: loss.detach()[None]))


class Points:
    """Batches of images in memory, in the order of an epoch."""

    in_device_memory = False

    def __init__(self, images: torch.Tensor, targets: torch.Tensor, batch_size: int) -> None:
        self.sampler = EpochSampler(len(images), batch_size, seed=0)
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for keys in self.sampler:
            positions = [key.position for key in keys]
            yield Batch(self.images[positions], self.targets[positions], positions, [])


def squares(logits: torch.Tensor, targets: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (logits[:, 0] - images.mean((1, 2, 3)) - targets).square().sum()


def training_of(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    optim: OptimConfig = SGD,
    schedule: ScheduleConfig | None = None,
    criterion: Loss | None = None,
    batch_size: int = 32,
    accumulation_steps: int = 1,
) -> Training:
    train = Points(images, targets, batch_size)
    optimizer = build_optimizer(model, optim)
    state = TrainState(
        model=model,
        optimizer=optimizer,
        schedule=Schedule(
            optimizer,
            schedule or ScheduleConfig(),
            epochs=10,
            updates_per_epoch=len(train),
            mode="max",
        ),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    loop = LoopOptions(Machine(CPU), TASK, accumulation_steps)
    parts = SimpleNamespace(
        state=state,
        forward=model,
        train=train,
        criterion=criterion or CrossEntropy(0.0, None),
        options=SimpleNamespace(loop=loop),
    )
    return cast(Training, parts)  # what the trial uses of it


def linear(features: int = 12, outputs: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))


def quadratic(*, scale: float = 3.0, noise: float = 0.1, **options: Any) -> Training:
    """Least squares, whose Hessian is 2 scale^2: gradient descent diverges above 1 / scale^2."""
    generator = torch.Generator().manual_seed(2)
    images = scale * torch.randn(256, 3, 2, 2, generator=generator)
    weights = torch.randn(12, generator=generator)
    targets = images.flatten(1) @ weights + noise * torch.randn(256, generator=generator)
    settings: dict[str, Any] = {"criterion": squares, "batch_size": 64} | options
    return training_of(linear(), images, targets, **settings)


def coloured(count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of three colours, and their labels."""
    generator = torch.Generator().manual_seed(4)
    targets = torch.arange(count) % 3
    images = 0.5 * torch.randn(count, 3, 32, 32, generator=generator)
    images[torch.arange(count), targets] += 1
    return images, targets


# --- what it suggests


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_the_suggestion_follows_the_curvature(scale: float) -> None:
    curve = find_lr(quadratic(scale=scale), seed=0, largest=10.0)
    diverges = 1 / scale**2
    assert diverges / 100 < curve.suggestion < diverges / 2
    assert curve.suggestion == float(f"{curve.suggestion:.2g}")
    assert f"diverges at {curve.lrs[-1]:.1e}" in curve.reason


def test_a_model_trained_at_the_suggestion_learns() -> None:
    images, targets = coloured()
    torch.manual_seed(0)
    model = lenet5(num_classes=3)
    adam = OptimConfig(name="adam", lr=1e-3)
    curve = find_lr(training_of(model, images, targets, optim=adam, batch_size=16), seed=0)
    assert 1e-5 < curve.suggestion < 0.1
    torch.manual_seed(0)
    model = lenet5(num_classes=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=curve.suggestion)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def descent(noise: float, seed: int = 0) -> tuple[list[float], list[float]]:
    """Level at 1.1 up to 1e-4, down to 0.3 at 0.01 in a straight line, and up again from there."""
    lrs = np.geomspace(1e-6, 0.25, 90)
    losses = np.interp(np.log10(lrs), [-4, -2, -1], [1.1, 0.3, 0.9])
    losses += noise * np.random.default_rng(seed).standard_normal(len(lrs))
    return lrs.tolist(), losses.tolist()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.0], (0, 2)),
        ([1.0, 2.0, 3.0, 2.5, 2.0, 4.0], (2, 4)),
        # Noise interrupts a valley: 5, 4, 3, 2, 1 with a gap, which shortens it by a point.
        ([5.0, 4.0, 4.5, 3.0, 2.0, 1.0, 6.0], (1, 5)),
        # The longest valley, not the deepest.
        ([9.0, 1.0, 8.0, 7.0, 6.0, 5.0], (1, 5)),
        ([1.0, 1.0, 1.0], (0, 0)),
    ],
)
def test_the_longest_valley(losses: list[float], expected: tuple[int, int]) -> None:
    assert find_valley(losses) == expected


def test_the_suggestion_lies_two_thirds_down_a_straight_descent() -> None:
    lrs = np.geomspace(1e-6, 1, 91)  # 15 points a decade
    losses = np.interp(np.log10(lrs), [-6, -1.5, 0], [2.0, 0.5, 1.0])
    curve = build_curve(lrs.tolist(), losses.tolist(), diverged=False)
    assert curve.suggestion == pytest.approx(10 ** (-6 + 2 / 3 * 4.5), rel=0.2)
    assert "two thirds down the longest valley of the loss, from 1.9" in curve.reason
    assert "diverges" not in curve.reason


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
def test_noise_does_not_lead_astray(noise: float) -> None:
    """Two thirds down is 2e-3; noise on the level part adds to the valley on its left."""
    for seed in range(30):
        suggestion = build_curve(*descent(noise, seed), diverged=True).suggestion
        assert 2e-3 / 3 < suggestion < 2e-3 * 3


def test_a_steep_fall_after_divergence_is_not_suggested() -> None:
    lrs, losses = descent(0.02)
    losses[-5:] = [5.0, 5.0, 0.1, 0.1, 0.1]  # the running mean ends a test within a few
    assert build_curve(lrs, losses, diverged=True).suggestion < 0.01


def test_a_huge_last_loss_does_not_spread() -> None:
    lrs, losses = descent(0.02)
    plain = build_curve(lrs, losses, diverged=True)
    curve = build_curve(lrs, [*losses[:-1], 1e12], diverged=True)
    assert curve.suggestion == plain.suggestion
    assert max(curve.smoothed) < 3
    assert curve.losses[-1] == 1e12


def test_a_loss_that_only_rises_gives_no_suggestion() -> None:
    """As after fitting the head, when there may be little left to learn."""
    lrs = np.geomspace(1e-6, 1, 100)
    for seed in range(20):
        noise = 0.02 * np.random.default_rng(seed).standard_normal(100)
        losses = 0.2 + noise + np.maximum(np.log10(lrs / 0.01), 0)
        with pytest.raises(TrainError, match=r"loss of 0\.\d+ does not clearly fall") as caught:
            build_curve(lrs.tolist(), losses.tolist(), diverged=False)
        assert "train.stages=[finetune]" in str(caught.value.hint)


def test_a_fall_within_the_noise_gives_no_suggestion() -> None:
    lrs = np.geomspace(1e-6, 1, 100)
    for seed in range(20):
        losses = 1 + 0.1 * np.random.default_rng(seed).standard_normal(100)
        with pytest.raises(TrainError, match="none can be suggested"):
            build_curve(lrs.tolist(), losses.tolist(), diverged=False)


@pytest.mark.parametrize("count", [1, 19])
def test_too_few_points_tell_nothing(count: int) -> None:
    with pytest.raises(TrainError, match=f"lost after {count} updates"):
        build_curve([0.1] * count, [1.0] * count, diverged=True)


def test_the_smoothed_loss_neither_lags_nor_leads() -> None:
    lrs, _ = descent(0.0)
    line = np.linspace(2.0, 1.0, len(lrs)).tolist()
    smoothed = build_curve(lrs, line, diverged=False).smoothed
    assert np.allclose(smoothed[12:-12], line[12:-12], atol=1e-6)


# --- when it stops


def test_it_stops_when_the_loss_diverges() -> None:
    steps: list[tuple[int, int]] = []
    curve = find_lr(
        quadratic(), seed=0, largest=10.0, on_step=lambda done, total: steps.append((done, total))
    )
    assert curve.diverged
    assert 1 / 9 < curve.lrs[-1] < 2
    assert len(curve.lrs) == len(curve.losses) == len(curve.smoothed) < 100
    assert steps == [(n, 100) for n in range(1, len(steps) + 1)]
    assert len(steps) >= len(curve.lrs)
    assert all(math.isfinite(loss) for loss in curve.losses)


def test_it_goes_through_all_rates_where_nothing_diverges() -> None:
    curve = find_lr(quadratic(), seed=0, smallest=1e-5, largest=0.05, steps=40)
    assert not curve.diverged
    assert "diverges" not in curve.reason
    assert np.allclose(curve.lrs, np.geomspace(1e-5, 0.05, 40))


def test_short_epochs_follow_one_another() -> None:
    """Four batches an epoch: each epoch has an order of its own."""
    training = quadratic()
    epochs: list[int] = []
    set_epoch = training.train.sampler.set_epoch  # type: ignore[union-attr]
    training.train.sampler.set_epoch = lambda epoch: (epochs.append(epoch), set_epoch(epoch))  # type: ignore
    curve = find_lr(training, seed=0, largest=0.05, steps=30)
    assert len(curve.lrs) == 30
    assert epochs == list(range(1, 9))


def test_a_loss_that_is_no_number_tells_nothing() -> None:
    def broken(logits: torch.Tensor, targets: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return squares(logits, targets, images) * float("nan")

    with pytest.raises(TrainError, match="not finite before anything was learned") as caught:
        find_lr(quadratic(criterion=broken), seed=0)
    assert "mnft data check" in str(caught.value.hint)


def test_a_loss_lost_early_tells_nothing() -> None:
    with pytest.raises(TrainError, match=r"lost after \d+ updates"):
        find_lr(quadratic(), seed=0, smallest=1e4, largest=1e9)


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(640, 3, 2, 2, generator=generator)
    targets = torch.randint(0, 3, (640,), generator=generator)
    with pytest.raises(TrainError, match="none can be suggested") as caught:
        find_lr(training_of(linear(12, 3), images, targets), seed=0, smallest=1e-9, largest=1e-7)
    assert "train.batch_size" in str(caught.value.hint)


@pytest.mark.parametrize("steps", [0, 19])
def test_too_few_steps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        find_lr(quadratic(), seed=0, steps=steps)


@pytest.mark.parametrize("rates", [(1.0, 0.1), (0.0, 1.0), (0.1, math.inf), (0.1, math.nan)])
def test_what_is_no_range_is_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="expected a growing range"):
        find_lr(quadratic(), seed=0, smallest=rates[0], largest=rates[1])


def test_too_little_memory_is_explained() -> None:
    def hungry(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 8 GiB\nmore")

    with pytest.raises(
        TrainError, match=r"cpu has too little memory: out of memory.*GiB$"
    ) as caught:
        find_lr(quadratic(criterion=hungry), seed=0)
    assert "train.batch_size" in str(caught.value.hint)


# --- what it keeps


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(),
        ScheduleConfig(name="cosine", warmup_epochs=2),
        ScheduleConfig(name="plateau", warmup_epochs=2),
    ],
    ids=lambda schedule: schedule.name,
)
def test_the_ratios_of_layer_decay_are_kept(schedule: ScheduleConfig) -> None:
    images, targets = coloured()
    torch.manual_seed(0)
    model = lenet5(num_classes=3)
    optim = OptimConfig(name="adamw", lr=2e-3, layer_decay=0.5)
    training = training_of(model, images, targets, optim=optim, schedule=schedule, batch_size=16)
    groups = training.state.optimizer.param_groups
    scales = [group["lr_scale"] for group in groups]
    assert min(scales) < 0.2 < max(scales) == 1
    seen: list[list[float]] = []
    curve = find_lr(
        training, seed=0, on_step=lambda *_: seen.append([group["lr"] for group in groups])
    )
    for lr, rates in zip(curve.lrs, seen, strict=False):
        assert rates == pytest.approx([lr * scale for scale in scales])


def test_parts_of_batches_give_the_same_curve() -> None:
    whole = find_lr(quadratic(), seed=0, steps=40)
    parts = find_lr(quadratic(accumulation_steps=4), seed=0, steps=40)
    assert np.allclose(whole.losses, parts.losses, rtol=1e-3)


def test_the_trial_is_a_function_of_the_seed() -> None:
    images, targets = coloured()

    def curve(seed: int) -> LrCurve:
        torch.manual_seed(0)
        model = lenet5(num_classes=3, drop_rate=0.5)
        adam = OptimConfig(name="adam", lr=1e-3)
        return find_lr(
            training_of(model, images, targets, optim=adam, batch_size=16), seed=seed, steps=60
        )

    assert curve(1) == curve(1)
    assert curve(1).losses != curve(2).losses


def test_the_losses_are_means_over_the_batches() -> None:
    training = quadratic()
    model = training.state.model
    training.train.sampler.set_epoch(1)  # type: ignore[union-attr]
    first = next(iter(training.train))
    with torch.no_grad():
        expected = squares(model(first.images), first.targets, first.images) / len(first.images)
    assert find_lr(training, seed=0).losses[0] == pytest.approx(expected.item(), rel=1e-5)


# --- what it writes


@pytest.mark.plots
def test_the_picture(tmp_path: Path) -> None:
    lrs, losses = descent(0.05)
    curve = build_curve(lrs, [*losses[:-1], 1e9], diverged=True)
    path = tmp_path / "new" / "lr.png"
    plot_lr_curve(
        curve.lrs,
        curve.losses,
        curve.smoothed,
        path,
        suggestion=curve.suggestion,
        title="$x_1$ 猫 " + "long " * 40,
    )
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 600
    # The suggestion is drawn in vermilion, a vertical line at its rate.
    marked = np.argwhere((np.abs(pixels - (0xD5, 0x5E, 0x00)) < 30).all(2))
    assert len(marked) > 100
    assert [entry.name for entry in path.parent.iterdir()] == ["lr.png"]


Write = Callable[..., Path]


@pytest.fixture
def write_config(make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A function that makes images and a config for them, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(*, per_class: int = 8, **model: Any) -> Path:
        root = make_folder(splits=("train", "val"), per_class=per_class)
        sections: dict[str, Any] = {
            "recipe": "plain",
            "data": {"root": str(root), "workers": 0, "img_size": 32, "store": "off"},
            "model": {"name": "lenet5", "pretrained": False} | model,
            "train": {"batch_size": 8, "precision": "fp32", "device": "cpu"},
            "run": {"tensorboard": False},
        }
        path = Path("small.yaml")
        path.write_text(yaml.safe_dump(sections))
        return path

    return write


@pytest.mark.plots
@pytest.mark.parametrize("name", ["lenet5", "test_resnet"])
def test_the_command_writes_the_curve_and_gives_the_rate(
    name: str, write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(write_config(name=name), ["optim.lr=5", "optim.name=adamw"], as_json=False)
    out, err = capsys.readouterr()
    suggestion = float(out)
    assert 1e-5 < suggestion < 0.3
    assert f"suggested learning rate: {out.strip()}" in err
    assert "because it lies two thirds down the longest valley of the loss" in err
    assert f"the config has optim.lr: 5; the suggestion is {suggestion / 5:.2g} times that" in err
    assert (
        f"next: mnft train small.yaml --set optim.name=adamw --set optim.lr={out.strip()}\n" in err
    )
    assert sorted(path.name for path in Path("runs").iterdir()) == ["small-lr.csv", "small-lr.png"]
    with Image.open("runs/small-lr.png") as picture:
        assert picture.size[0] > 600
    with open("runs/small-lr.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["lr", "loss", "smoothed_loss"]
    assert 20 <= len(rows) <= 100
    assert float(rows[0]["lr"]) == pytest.approx(1e-6)
    assert any(float(row["lr"]) == pytest.approx(suggestion, rel=0.05) for row in rows)


def test_the_command_as_json_twice(write_config: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config()
    answers = []
    for _ in range(2):
        command.run(config, ["run.dir=out/deep"], as_json=True)
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0].keys() == {"suggestion", "png", "csv", "steps", "own"}
    assert answers[0]["own"] == {"lr": 0.001, "source": "default"}
    assert answers[0]["png"] == "out/deep/small-lr.png"
    assert len(Path(answers[0]["csv"]).read_text().splitlines()) == answers[0]["steps"] + 1


def test_the_trial_starts_from_a_new_head(write_config: Write) -> None:
    """After the head stage the loss hardly falls, so the curve would say nothing."""
    first: list[float] = []
    for sets in (["train.stages=[finetune]"], ["train.stages=[head, finetune]"]):
        command.run(write_config(), sets, as_json=True)
        with open("runs/small-lr.csv", newline="") as stream:
            first.append(float(next(csv.DictReader(stream))["loss"]))
    assert first[0] == first[1]


def test_the_rate_of_the_recipe_is_named_and_why_it_differs(
    write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("lenet5", num_classes=3).state_dict(), "start.safetensors")
    config = write_config(pretrained="start.safetensors")
    command.run(config, ["recipe=auto", "train.stages=[finetune]"], as_json=False)
    err = capsys.readouterr().err
    assert "the recipe has optim.lr: 0.0002, chosen by the results of whole trainings" in err
    assert "the suggestion comes from a short trial without these" in err


def test_the_head_alone_has_no_learning_rate(write_config: Write) -> None:
    with pytest.raises(ConfigError, match="found only the head stage"):
        command.run(write_config(), ["train.stages=[head]"], as_json=True)


def test_a_name_that_is_taken_does_not_matter(write_config: Write) -> None:
    Path("runs/mine").mkdir(parents=True)
    command.run(write_config(), ["run.name=mine"], as_json=False)
    assert not list(Path("runs/mine").iterdir())


def test_few_images_are_gone_through_again(
    write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three images, one batch an epoch."""
    command.run(write_config(per_class=1), [], as_json=False)
    assert 1e-5 < float(capsys.readouterr().out) < 0.3


def test_images_that_are_too_few_for_a_batch(write_config: Write) -> None:
    config = write_config(per_class=1)
    root = Path(yaml.safe_load(config.read_text())["data"]["root"])
    for extra in ("green", "red"):
        (root / "train" / extra / "000.png").unlink()
    with pytest.raises(MnftError, match="no usable image in class green, red"):
        command.run(config, [], as_json=False)
    assert not list(Path("runs").glob("*"))


def test_one_image_a_batch_and_batchnorm(write_config: Write) -> None:
    with pytest.raises(TrainError, match="BatchNorm cannot learn"):
        command.run(write_config(name="test_resnet"), ["train.batch_size=1"], as_json=False)


def test_a_run_dir_that_is_a_file(write_config: Write) -> None:
    Path("taken").touch()
    with pytest.raises(ConfigError, match="taken is a file"):
        command.run(write_config(), ["run.dir=taken"], as_json=False)


def test_several_processes_are_refused(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(replace(Ranks(), world_size=2), SILENT)
    monkeypatch.setattr(command, "joined", lambda _reporter: nullcontext(group))
    with pytest.raises(ConfigError, match="found 2 processes"):
        command.run(write_config(), [], as_json=False)
