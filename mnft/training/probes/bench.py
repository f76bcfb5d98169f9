"""Measure where the time of a training goes: only batches, only updates, and both together."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from mnft.data.batches.batch import Batch, Batches, TrainBatches
from mnft.data.batches.samplers import EpochSampler
from mnft.device.select import autocast
from mnft.model.freeze import set_training_mode
from mnft.training.epoch.loop import train_one_epoch
from mnft.training.inference import compute_outputs
from mnft.training.training import Training

_WARMUP = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second, measured in several rounds.

    Attributes:
        median: median of the rounds.
        lowest: slowest round.
        highest: fastest round.
    """

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What limits a training.

    Attributes:
        loading: speed of only loading batches, as the training gets them.
        fixed_batch: upper limit: speed of only forward, loss, backward and one fused optimizer, on
            one batch that stays on the device.
        computing: speed of mnft's updates on that batch.
        training: speed of loading and updates together, as in an epoch.
        evaluating: speed of evaluating the val split, with loading.
        wait: fraction of the training's time spent waiting for data. If the images are in the
            device's memory, what making batches of them adds to the time of the updates.
        rounds: number of rounds.
        batches: number of batches in a round.
        threads: number of CPU threads that computed.
    """

    loading: Speed
    fixed_batch: Speed
    computing: Speed
    training: Speed
    evaluating: Speed
    wait: float
    rounds: int
    batches: int
    threads: int

    @property
    def limit(self) -> str:
        """What to make faster: "loading" or "computing"."""
        return "loading" if self.loading.median < 2 * self.computing.median else "computing"


def bench(
    training: Training,
    *,
    batches: int,
    rounds: int,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> BenchResult:
    """Measure the parts in turn, round by round, so that all see the same state of the machine.

    Args:
        training: what to measure; its weights change, so it is of no use afterwards.
        batches: number of batches in a round, or those of an epoch if that has fewer.
        rounds: number of rounds.
        on_progress: called with the rounds done and all rounds.
    """
    train = training.train
    count = min(batches, len(train))
    fixed = next(iter(train))
    device = training.machine.device
    threads = training.options.threads.choose()
    _train(training, _Part([fixed] * min(_WARMUP, count), train.sampler))
    found: dict[str, list[float]] = {
        name: [] for name in ("loading", "fixed_batch", "computing", "training", "evaluating")
    }
    waits = []
    fixed_step = _build_fixed_step(training, fixed)
    fixed_step()
    on_progress(0, rounds)
    for round_number in range(rounds):
        train.sampler.set_epoch(round_number + 1)
        found["loading"].append(_load(train, count, device))
        started = time.perf_counter()
        for _ in range(count):
            fixed_step()
        _synchronize(device)
        found["fixed_batch"].append(count * len(fixed.images) / (time.perf_counter() - started))
        updates, _ = _train(training, _Part([fixed] * count, train.sampler))
        found["computing"].append(updates)
        train.sampler.set_epoch(round_number + 1)
        rate, wait = _train(training, _Part(itertools.islice(train, count), train.sampler, count))
        found["training"].append(rate)
        waits.append(max(0.0, 1 - rate / updates) if train.in_device_memory else wait)
        found["evaluating"].append(_evaluate(training))
        on_progress(round_number + 1, rounds)
    speeds = {name: Speed(statistics.median(r), min(r), max(r)) for name, r in found.items()}
    return BenchResult(
        **speeds,
        wait=statistics.median(waits),
        rounds=rounds,
        batches=count,
        threads=threads,
    )


class _Part:
    """Some batches that stand for those of an epoch."""

    def __init__(
        self,
        batches: list[Batch] | Iterator[Batch],
        sampler: EpochSampler,
        count: int | None = None,
    ) -> None:
        self.sampler = sampler
        self.in_device_memory = False
        self._batches = batches
        self._count = len(batches) if isinstance(batches, list) else count or 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def _load(batches: Batches, count: int, device: torch.device) -> float:
    """Images per second of `count` batches."""
    images = 0
    started = time.perf_counter()
    for batch in itertools.islice(batches, count):
        images += len(batch.images)
    _synchronize(device)
    return images / (time.perf_counter() - started)


def _train(training: Training, batches: TrainBatches) -> tuple[float, float]:
    """Images per second of updates, and the fraction of the time spent waiting for data."""
    state = replace(training.state, num_updates=0)
    result = train_one_epoch(
        state,
        training.forward,
        batches,
        training.criterion,
        training.options.loop,
        on_step=lambda *_: None,
    )
    _synchronize(training.machine.device)
    return result.num_images / result.seconds, (result.waited or 0.0) / result.seconds


def _build_fixed_step(training: Training, batch: Batch) -> Callable[[], None]:
    """Build an update with only the arithmetic, on one batch and one group of parameters."""
    model, loop = training.state.model, training.options.loop
    set_training_mode(model, freeze_batchnorm=loop.freeze_batchnorm)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = loop.machine.device.type in {"cpu", "cuda"}
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=fused)

    def step() -> None:
        with autocast(loop.machine.device, loop.machine.train_dtype):
            outputs = model(batch.images)
        loss = training.criterion(outputs, batch.targets, batch.images) / len(batch.images)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _evaluate(training: Training) -> float:
    started = time.perf_counter()
    outputs = compute_outputs(
        training.state.evaluated_model,
        training.val,
        training.machine,
        num_outputs=len(training.task.labels),
    )
    return len(outputs.positions) / (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
