"""One epoch of training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnft.data.batches.batch import Batch, TrainBatches
from mnft.device.machine import Machine
from mnft.device.memory import explaining_memory
from mnft.device.ranks.distributed import gather, sum_over_ranks
from mnft.device.select import seed_stream
from mnft.errors import DataError, TrainError
from mnft.model.freeze import set_training_mode
from mnft.seeding import derive_seed
from mnft.tasks.base import Loss
from mnft.training.epoch.gradients import Gradients, LoopOptions
from mnft.training.epoch.snapshots import Snapshots
from mnft.training.state import PartialEpoch, TrainState

DIVERGED_HINT = "try a lower optim.lr, warmup, train.clip_grad: 1.0 or train.precision: fp32"
_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class LoopResult:
    """The result of an epoch, or of what is done of it.

    Attributes:
        figures: means of the task's training figures over the images of all processes.
        num_images: number of those images.
        seconds: duration.
        waited: part of `seconds` that was spent waiting for batches; None if they come from the
            device's memory.
        accumulation_steps: number of parts that batches are cut into now: more than before if
            memory ran out.
    """

    figures: dict[str, float]
    num_images: int
    seconds: float
    waited: float | None = 0.0
    accumulation_steps: int = 1


def train_one_epoch(
    state: TrainState,
    forward: nn.Module,
    batches: TrainBatches,
    criterion: Loss,
    options: LoopOptions,
    *,
    on_step: Callable[[int, int, LoopResult], None],
    seed: int | None = None,
    snapshots: Snapshots | None = None,
) -> LoopResult:
    """Train one epoch, or the rest of the one that `state.partial` describes.

    Where memory runs out, the batch is computed again in twice as many parts, and so are all that
    follow; several processes, which would have to agree on it, fail.

    Args:
        state: model, optimizer and the rest; changed in place.
        forward: the model, or its DistributedDataParallel wrapper.
        batches: training batches of this process, for this epoch.
        criterion: summed loss.
        options: how updates are computed.
        on_step: called a few times a second with the steps done, all steps and the result so far.
        seed: seed of dropout and the like, in this process; each update has its own stream. None
            continues torch's.
        snapshots: saves what is done between two updates, and stops on a signal.

    Raises:
        TrainError: the loss is not finite.
        Interrupted: a signal asked the training to stop, and what was done is saved.
        RuntimeError: parts cannot be small enough for the memory.
    """
    sampler, machine = batches.sampler, options.machine
    set_training_mode(state.model, freeze_batchnorm=options.freeze_batchnorm)
    if state.ema is not None:
        state.ema.begin_epoch(state.model)
    gradients = Gradients(state, forward, criterion, options, sampler)
    totals = RunningTotals(state.partial, options, state.schedule.lr)
    if state.partial is not None:  # the rest of an epoch keeps its number of parts
        parts = max(state.partial.accumulation_steps, options.accumulation_steps)
        gradients.accumulation_steps = parts
        state.partial = None
    # `asked` is when the loop was ready for the next batch: what passes until it comes is waiting.
    reported = asked = time.perf_counter()
    for batch in _until_stopped(batches, snapshots, machine):
        totals.waited += time.perf_counter() - asked
        if seed is not None:
            # Each update has its own stream, so a resumed epoch draws what it would have drawn.
            seed_stream(derive_seed(seed, totals.updates), machine.device)
        # Forward and backward; where memory runs out, again in smaller parts.
        totals.add(gradients.compute(totals.updates, batch), len(batch.images))

        # Nothing from here to the next batch waits for the device, except a snapshot or a report.
        gradients.apply()
        state.num_updates += 1
        state.schedule.after_update(state.num_updates)
        if state.ema is not None:
            state.ema.update(state.num_updates)

        now = asked = time.perf_counter()
        if snapshots is not None and snapshots.is_due():
            snapshots.take(totals.describe(sampler.epoch, gradients.accumulation_steps))
            asked = time.perf_counter()
        if now - reported > _REPORT_INTERVAL_S:
            reported = now
            # Reading the sums waits for the device, so only a few times a second.
            so_far = LoopResult(totals.means(), totals.images, totals.seconds)
            if machine.ranks.world_size == 1:  # several processes stop together, at the end
                _check_finite(so_far.figures)
            on_step(totals.updates, len(batches), so_far)
            asked = time.perf_counter()
    if state.ema is not None:
        state.ema.end_epoch()
    # Several processes add up their figures only here, once an epoch.
    images = sum(gather(machine.ranks, totals.images))
    figures = totals.means(sum_over_ranks(machine.ranks, totals.sums), images)
    _check_finite(figures)
    if snapshots is not None:
        # From here to the end of the evaluation a stop loses no update.
        state.partial = totals.describe(sampler.epoch, gradients.accumulation_steps)
        # Fewer updates: a signal has ended the loading processes. This saves, then raises it.
        if totals.updates < len(batches):
            snapshots.take(state.partial)
    return LoopResult(
        figures,
        images,
        seconds=totals.seconds,  # after the sums were read, which waits for the device
        # On a device this also is the time of updates that it still computes, not only of loading.
        waited=None if batches.in_device_memory else totals.waited,
        accumulation_steps=gradients.accumulation_steps,
    )


class RunningTotals:
    """Sums over an epoch so far.

    Attributes:
        sums: the task's training figures summed over images, and the number of images that have a
            label, on the device.
        images: number of images so far, in this process.
        updates: number of updates so far.
        lr: learning rate that the epoch began with.
        waited: seconds spent waiting for batches.
    """

    def __init__(self, begun: PartialEpoch | None, options: LoopOptions, lr: float) -> None:
        device = options.machine.device
        self._names = options.task.train_figures
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no double
        *sums, images = begun.totals if begun else [0.0] * (len(self._names) + 2)
        if len(sums) == len(self._names):  # of a version that knew no images without labels
            sums.append(images)
        self.sums = torch.tensor(sums, device=device, dtype=self._dtype)
        self.images = int(images)
        self.updates = begun.updates if begun else 0
        self.lr = begun.lr if begun else lr
        self.waited = begun.waited if begun else 0.0
        self._started = time.perf_counter() - (begun.seconds if begun else 0.0)

    @property
    def seconds(self) -> float:
        """Seconds since the epoch began, without those between a stop and its resumption."""
        return time.perf_counter() - self._started

    def add(self, sums: Tensor, images: int) -> None:
        """Count one update, without waiting for the device.

        Args:
            sums: what the task's `sum_batch` gave, on the device.
            images: number of images of this process.
        """
        self.sums += sums.to(self._dtype)
        self.images += images
        self.updates += 1

    def means(self, sums: Tensor | None = None, images: int | None = None) -> dict[str, float]:
        """Compute the mean figures, which waits for the device.

        Args:
            sums: the sums of all processes; None takes those of this one.
            images: their number of images.

        Returns:
            The loss over all images, and the other figures over those that have a label.
        """
        *totals, labelled = (self.sums if sums is None else sums).tolist()
        counts = [self.images if images is None else images, *[labelled] * (len(totals) - 1)]
        return {
            name: total / max(number, 1)
            for name, total, number in zip(self._names, totals, counts, strict=True)
        }

    def describe(self, epoch: int, accumulation_steps: int) -> PartialEpoch:
        """Describe the epoch so far, to be saved."""
        return PartialEpoch(
            epoch=epoch,
            updates=self.updates,
            lr=self.lr,
            totals=(*self.sums.tolist(), float(self.images)),
            seconds=self.seconds,
            waited=self.waited,
            accumulation_steps=accumulation_steps,
        )


def _until_stopped(
    batches: TrainBatches, snapshots: Snapshots | None, machine: Machine
) -> Iterator[Batch]:
    """Yield the batches; if a signal has ended the loading processes, those that came before.

    Raises:
        TrainError: a batch itself does not fit into memory, so cutting it into parts cannot help.
    """
    with explaining_memory(
        machine.device, hint="lower train.batch_size, data.img_size or data.workers"
    ):
        try:
            yield from batches
        except (RuntimeError, DataError):
            if snapshots is None or not snapshots.is_stopping:
                raise


def _check_finite(figures: dict[str, float]) -> None:
    loss = next(iter(figures.values()))
    if not math.isfinite(loss):
        raise TrainError(
            f"the training loss became {loss}, so the weights are lost", hint=DIVERGED_HINT
        )
