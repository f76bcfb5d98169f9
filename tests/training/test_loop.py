"""One epoch of training in memory: out of memory, waiting, the loss; fused optimizers."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from mnft.config.schema import OptimConfig, ScheduleConfig
from mnft.data.batches.batch import Batch
from mnft.data.batches.samplers import EpochSampler
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import Ranks
from mnft.errors import TrainError
from mnft.reporter import SILENT
from mnft.tasks import open_task
from mnft.tasks.base import Loss
from mnft.tasks.classify.head import CrossEntropy
from mnft.training import fit as fit_module
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.epoch.loop import LoopResult, train_one_epoch
from mnft.training.fit import FitOptions, fit
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.state import TrainState

CPU = torch.device("cpu")
TASK = open_task(("a", "b", "c"))
FIGURES = {"loss": 1.0, "accuracy": 0.5, "macro_f1": 0.5}
OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
OOM_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


class Memory(nn.Module):
    """Raises where a part has more images than fit."""

    def __init__(self, limit: int, where: str, error: Exception) -> None:
        super().__init__()
        self.limit, self.where, self.error = limit, where, error

    def forward(self, values: Tensor) -> Tensor:
        if len(values) > self.limit and self.where == "forward":
            raise self.error
        if values.requires_grad:
            values.register_hook(self._backward)
        return values

    def _backward(self, gradient: Tensor) -> None:
        if len(gradient) > self.limit and self.where == "backward":
            raise self.error


def build_model(limit: int, where: str = "forward", error: Exception = OOM) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Memory(limit, where, error),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


class Shares:
    """Batches in memory, as the data package gives them; each after a pause."""

    in_device_memory = False

    def __init__(self, sampler: EpochSampler, pause_s: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(100, 3, 6, 6, generator=generator)
        self.targets = torch.randint(3, (100,), generator=generator)
        self.sampler, self.pause_s = sampler, pause_s

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for keys in self.sampler:
            at = [key.position for key in keys]
            time.sleep(self.pause_s)
            yield Batch(self.images[at], self.targets[at], at, [])


def train(
    model: nn.Module,
    *,
    parts: int = 1,
    images: int = 40,
    batch_size: int = 16,
    ranks: Ranks = Ranks(),  # noqa: B008
    criterion: Loss | None = None,
    pause_s: float = 0.0,
    shares: type[Shares] = Shares,
) -> LoopResult:
    """One epoch with SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = Schedule(optimizer, ScheduleConfig(), epochs=1, updates_per_epoch=3, mode="max")
    state = TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    batches: Any = shares(EpochSampler(images, batch_size, seed=4), pause_s)
    return train_one_epoch(
        state,
        model,
        batches,
        criterion or CrossEntropy(0.1, None),
        LoopOptions(Machine(CPU, ranks), TASK, accumulation_steps=parts),
        on_step=lambda *_: None,
    )


# Out of memory


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [OOM, OOM_CPU, MemoryError()], ids=["gpu", "cpu", "python"])
def test_a_batch_too_large_is_computed_in_parts(
    caplog: pytest.LogCaptureFixture, where: str, error: Exception
) -> None:
    """Weights, statistics of BatchNorm and figures are those of parts that were asked for."""
    found, expected = build_model(4, where, error), build_model(100)
    by_hand = train(expected, parts=4)
    with caplog.at_level(logging.WARNING):
        result = train(found)
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: batches of 16 are now computed in {parts} parts, the update stays the same"
        for parts in (2, 4)
    ]
    assert result.accumulation_steps == by_hand.accumulation_steps == 4
    assert result.figures == by_hand.figures
    assert result.figures.keys() == {"loss", "accuracy"}
    assert result.num_images == by_hand.num_images == 40
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert found.state_dict()["1.num_batches_tracked"] == 12


def test_memory_that_runs_out_in_the_middle_of_an_epoch() -> None:
    """Earlier batches keep what they changed."""
    model = build_model(100)
    memory = model[3]
    assert isinstance(memory, Memory)

    def shrink(module: nn.Module, *_: object) -> None:
        memory.limit = 100 if not module.num_batches_tracked else 8

    hook = model[1].register_forward_pre_hook(shrink)
    result = train(model)
    hook.remove()
    assert result.accumulation_steps == 2
    assert result.num_images == 40
    assert model.state_dict()["1.num_batches_tracked"] == 1 + 2 + 2


def test_no_part_is_a_single_image_where_batchnorm_learns() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(build_model(1))
    assert train(build_model(2)).accumulation_steps == 8
    without = build_model(1)
    without[1] = nn.Identity()
    assert train(without).accumulation_steps == 16
    none = build_model(0)
    none[1] = nn.Identity()
    with pytest.raises(torch.OutOfMemoryError):
        train(none)


def test_a_batch_size_that_is_no_power_of_two() -> None:
    assert train(build_model(2), batch_size=10).accumulation_steps == 5
    assert train(build_model(3), batch_size=9).accumulation_steps == 4


def test_a_batch_that_does_not_fit_itself_is_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Only a smaller batch helps where its images are already too many."""

    class Hungry(Shares):
        def __iter__(self) -> Iterator[Batch]:
            for number, batch in enumerate(super().__iter__()):
                if number == 1:
                    raise torch.AcceleratorError("CUDA error: out of memory\nSearch for")
                yield batch

    with pytest.raises(
        TrainError, match=r"too little memory: CUDA error: out of memory$"
    ) as raised:
        train(build_model(100), shares=Hungry)
    assert "train.batch_size" in str(raised.value.hint)
    assert not caplog.records


def test_several_processes_do_not_cut_on_their_own(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(build_model(4), ranks=Ranks(0, 2))
    assert not caplog.records


def test_other_errors_are_not_taken_for_memory(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train(build_model(4, error=RuntimeError("shapes cannot be multiplied")))
    assert not caplog.records


def test_only_statistics_that_change_are_kept_for_another_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One copy for each type of number, of the BatchNorm layers that learn; else none."""
    copied: list[int] = []
    real = torch._foreach_copy_

    def record(to: list[Tensor], what: list[Tensor]) -> None:
        copied.append(len(to))
        real(to, what)

    monkeypatch.setattr(torch, "_foreach_copy_", record)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten())
    model.append(nn.Linear(64, 3))
    train(model, images=32)
    assert sorted(copied) == [2, 2, 4, 4]  # two updates: counters; means and variances
    copied.clear()
    model[1].requires_grad_(False)
    train(model, images=32)
    assert sorted(copied) == [1, 1, 2, 2]
    copied.clear()
    train(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)), images=32)
    assert not copied


# Waiting and the loss


def test_the_time_until_batches_are_there() -> None:
    slow = train(build_model(100), pause_s=0.05)
    assert 0.15 <= slow.waited <= slow.seconds
    assert train(build_model(100)).waited < 0.05


def test_images_in_the_device_memory_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's time until the next batch is there would be that of the GPU's own work."""
    monkeypatch.setattr(Shares, "in_device_memory", True)
    assert train(build_model(100), pause_s=0.01).waited is None


def test_the_loss_sees_the_images_of_each_part() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def record(logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        seen.append((images, targets))
        return nn.functional.cross_entropy(logits, targets, reduction="sum")

    train(build_model(100), parts=2, images=16, criterion=record)
    assert [len(images) for images, _ in seen] == [8, 8]
    batches = Shares(EpochSampler(16, 16, seed=4))
    batch = next(iter(batches))
    assert torch.equal(torch.cat([images for images, _ in seen]), batch.images)
    assert torch.equal(torch.cat([targets for _, targets in seen]), batch.targets)


# What fit makes of it


def run_fit(
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[LoopResult | Exception],
    evaluate: Callable[..., Any] = lambda *_: (FIGURES, {}),
    processes: int = 1,
) -> Any:
    """The result of `fit`, and the parts that each epoch began with."""
    model = nn.Linear(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(optimizer, ScheduleConfig(), epochs=9, updates_per_epoch=1, mode="max")
    state = TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    began = []

    def scripted(*arguments: Any, **_: Any) -> LoopResult:
        began.append(arguments[4].accumulation_steps)
        outcome = outcomes[len(began) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(fit_module, "train_one_epoch", scripted)
    monkeypatch.setattr(fit_module, "evaluate", evaluate)

    class Train:
        sampler = EpochSampler(4, 2, seed=0)

    loop = LoopOptions(Machine(CPU, Ranks(0, processes)), TASK)
    options = FitOptions(len(outcomes), "accuracy", None, 0, loop, stage="head")
    arguments: Any = (state, model, Train(), [], CrossEntropy(0.0, None), options)
    return fit(*arguments, checkpointer=None, reporter=SILENT), began


def test_the_next_epoch_begins_with_the_parts_that_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = LoopResult(FIGURES, 4, 2.0, waited=0.5, accumulation_steps=4)
    result, began = run_fit(monkeypatch, [trained, trained])
    assert began == [1, 4]
    for epoch in result.epochs:
        assert epoch.figures == {
            **{f"train_{name}": value for name, value in FIGURES.items()},
            **{f"val_{name}": value for name, value in FIGURES.items()},
        }
        assert epoch.stage == "head"
        assert epoch.data_wait == 0.25
        assert epoch.peak_memory_mb > 50


@pytest.mark.parametrize("error", [OOM, OOM_CPU, MemoryError()], ids=["gpu", "cpu", "python"])
def test_too_little_memory_is_an_error_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(TrainError, match=r"cpu has too little memory: .*[mM]emory") as raised:
        run_fit(monkeypatch, [error])
    # The parts are as small as they can be by then.
    assert "train.accumulation_steps" not in str(raised.value.hint)
    assert "data.img_size" in str(raised.value.hint)


def test_several_processes_are_told_to_cut_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainError) as raised:
        run_fit(monkeypatch, [OOM], processes=2)
    assert "train.accumulation_steps" in str(raised.value.hint)


def test_evaluation_that_does_not_fit_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise OOM

    with pytest.raises(TrainError, match="cpu has too little memory") as raised:
        run_fit(monkeypatch, [LoopResult(FIGURES, 4, 2.0)], fail)
    assert raised.value.hint == "lower eval.batch_size"


def test_other_errors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes"):
        run_fit(monkeypatch, [RuntimeError("shapes cannot be multiplied")])


# Fused optimizers


@pytest.mark.parametrize(
    "name", ["adam", "adamw", "sgd", "nesterov", "momentum", "adagrad", "AdamW"]
)
def test_optimizers_are_fused(name: str) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(name=name))
    assert optimizer.defaults["fused"] is True
    assert all(group["fused"] is True for group in optimizer.param_groups)


def test_optimizers_without_a_fused_implementation() -> None:
    for name in ("lamb", "rmsprop", "nadam"):
        assert not build_optimizer(nn.Linear(2, 2), OptimConfig(name=name)).defaults.get("fused")
    meta = nn.Linear(2, 2, device="meta")
    assert not build_optimizer(meta, OptimConfig(name="adamw")).defaults["fused"]


def test_an_optimizer_that_refuses_is_built_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.optim.create_optimizer_v2

    def refuse(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if kwargs.get("fused"):
            raise RuntimeError("`fused=True` requires all the params to be floating point")
        return real(*args, **kwargs)

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", refuse)
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(name="adamw"))
    assert not optimizer.defaults["fused"]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "adagrad"])
def test_fused_updates_are_those_of_torch(name: str) -> None:
    """And a state that is loaded goes on bit for bit; also that of a run without fusion."""
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.1, layer_decay=None)
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    models = [model, *(copy.deepcopy(model) for _ in range(3))]
    fused, resumed, old, plain = (build_optimizer(each, config) for each in models)
    for group in plain.param_groups:
        group["fused"] = False
    images = torch.randn(6, 8, 5)
    for step in range(6):
        if step == 3:
            resumed.load_state_dict(copy.deepcopy(fused.state_dict()))
            old.load_state_dict(copy.deepcopy(plain.state_dict()))
            models[1].load_state_dict(models[0].state_dict())
            models[2].load_state_dict(models[3].state_dict())
        for each, optimizer in zip(models, (fused, resumed, old, plain), strict=True):
            each(images[step]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(models[1].weight, models[0].weight)
    assert torch.equal(models[2].weight, models[3].weight)
    torch.testing.assert_close(models[0].weight, models[3].weight, rtol=1e-5, atol=1e-6)


def test_the_scaler_of_fp16_and_a_fused_optimizer() -> None:
    """An update whose gradient overflowed is left out, and the scale is halved."""
    model = nn.Linear(2, 1)
    optimizer = build_optimizer(model, OptimConfig(name="adamw"))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = model.weight.detach().clone()
    for images, changed in ((torch.full((1, 2), torch.inf), False), (torch.ones(1, 2), True)):
        scaler.scale(model(images).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(model.weight, before) != changed
        assert scaler.get_scale() == 4.0
