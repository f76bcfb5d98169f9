"""The epochs of a training: when to evaluate, what is best, when to save, when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from mnft.data.batches.batch import Batches
from mnft.data.batches.samplers import EpochSampler
from mnft.device.cpu.threads import Threads
from mnft.device.memory import explaining_memory, peak_memory_mb, reset_peak_memory
from mnft.device.select import seed_everything
from mnft.errors import Interrupted, TrainError
from mnft.reporter import Reporter
from mnft.results import EpochResult, FitResult, StepProgress
from mnft.seeding import derive_seed
from mnft.signals import stop_request
from mnft.tasks.base import Loss
from mnft.tasks.classify.metrics import EpochMetrics, compute_epoch_metrics
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.epoch.loop import DIVERGED_HINT, LoopResult, train_one_epoch
from mnft.training.epoch.snapshots import Pauses
from mnft.training.inference import compute_outputs
from mnft.training.state import TrainState


class Checkpointer(Protocol):
    """Who writes down what an epoch leaves."""

    def save_epoch(self, state: TrainState, result: EpochResult) -> None:
        """Log a finished epoch and save it, or hold it in memory until the next save."""

    def snapshot(self, state: TrainState) -> None:
        """Save the resume state alone, within an epoch."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What stays the same over the epochs.

    Attributes:
        epochs: to train in all.
        monitor: "accuracy", "macro_f1" or "loss" of the val split; chooses the best epoch. Ties go
            to the lower loss, then to the later epoch.
        early_stopping: epochs without improvement before stopping, or None.
        seed: of order, augmentation and dropout.
        num_classes: outputs of the model.
        eval_dtype: arithmetic of evaluation.
        loop: how updates are computed.
        stage: of the training, for the records.
        snapshot_minutes: between two snapshots within an epoch, or None; with one process only.
        threads: how many compute on the CPU.
    """

    epochs: int
    monitor: str
    early_stopping: int | None
    seed: int
    num_classes: int
    eval_dtype: torch.dtype
    loop: LoopOptions
    stage: str = "finetune"
    snapshot_minutes: float | None = None
    threads: Threads = field(
        default_factory=lambda: Threads(torch.get_num_threads(), follows=False)
    )


def fit(
    state: TrainState,
    forward: nn.Module,
    train: Batches,
    val: Batches,
    criterion: Loss,
    options: FitOptions,
    *,
    checkpointer: Checkpointer | None,
    reporter: Reporter,
) -> FitResult:
    """Train until the epochs are done or patience runs out; goes on after `state.history`.

    Args:
        state: changed in place.
        forward: the model, or its distributed wrapper.
        train: training batches.
        val: evaluation batches of the val split.
        criterion: summed loss.
        options: what stays the same.
        checkpointer: writes files; None in processes that do not.
        reporter: told of progress and epochs; silent in processes that do not speak.

    Raises:
        TrainError: the loss or the model's outputs are not finite; what was kept before stays.
    """
    assert isinstance(train.sampler, EpochSampler)
    loop = options.loop
    for epoch in range(len(state.history) + 1, options.epochs + 1):
        if out_of_patience(state, options):
            break
        started = time.perf_counter()
        reset_peak_memory(loop.device)
        begun = state.partial
        # The rest of an epoch is computed as it began: the order of sums follows from the number.
        before = state.threads if begun else 0
        state.threads = options.threads.choose(loop.dtype, begun_with=before)
        lr = begun.lr if begun else state.schedule.lr
        train.sampler.set_epoch(epoch, done=begun.updates if begun else 0)
        # Dropout and the like: each epoch, and each process, its own stream.
        seed = derive_seed(options.seed, epoch, loop.ranks.rank)
        seed_everything(seed)
        pauses = _build_pauses(state, options, checkpointer)
        try:
            with stop_request.deferred() if pauses else nullcontext(), _explaining_memory(loop):
                trained = train_one_epoch(
                    state,
                    forward,
                    train,
                    criterion,
                    loop,
                    on_step=_on_step(epoch, options, reporter),
                    seed=seed,
                    pauses=pauses,
                )
            with explaining_memory(loop.device, hint="lower eval.batch_size"):
                metrics = _evaluate(state, val, options)
        except (Interrupted, KeyboardInterrupt):
            # All updates are done: only the evaluation is left.
            if checkpointer and state.partial is not None:
                checkpointer.snapshot(state)
            raise
        state.partial = None
        # Where memory ran out, the next epoch need not find that out again.
        loop = replace(loop, accumulation_steps=trained.accumulation_steps)
        result = _describe(epoch, options, trained, metrics, state)
        result = replace(result, lr=lr, seconds=time.perf_counter() - started)
        state.history.append(result)
        state.best = result if result.is_best else state.best
        state.schedule.after_epoch(epoch, _monitored(metrics, options.monitor))
        if checkpointer:
            with stop_request.deferred():
                checkpointer.save_epoch(state, result)
        reporter.on_epoch(result)
    return FitResult(list(state.history), state.best, out_of_patience(state, options))


def _describe(
    epoch: int, options: FitOptions, trained: LoopResult, metrics: EpochMetrics, state: TrainState
) -> EpochResult:
    """The epoch's result, but for what only its beginning knows: rate and seconds."""
    return EpochResult(
        epoch=epoch,
        epochs=options.epochs,
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        val_loss=metrics.loss,
        val_accuracy=metrics.accuracy,
        val_macro_f1=metrics.macro_f1,
        lr=0.0,
        images_per_s=trained.num_images / max(trained.seconds, 1e-9),
        seconds=0.0,
        is_best=_is_better(metrics, state.best, options.monitor),
        stage=options.stage,
        data_wait=None if trained.waited is None else trained.waited / max(trained.seconds, 1e-9),
        peak_memory_mb=peak_memory_mb(options.loop.device),
        threads=state.threads,
        max_threads=options.threads.most,
    )


def _build_pauses(
    state: TrainState, options: FitOptions, checkpointer: Checkpointer | None
) -> Pauses | None:
    """Several processes would have to pause at the same update: they save whole epochs alone."""
    if checkpointer is None or options.loop.ranks.world_size > 1:
        return None
    return Pauses(state, checkpointer.snapshot, options.snapshot_minutes)


def out_of_patience(state: TrainState, options: FitOptions) -> bool:
    """Whether the monitored figure has not improved for `early_stopping` epochs.

    A tie that its loss decided is the best epoch, but no improvement: a loss that creeps down
    under a figure that stands still must not keep a run going for ever.
    """
    if options.early_stopping is None or not state.results:
        return False
    sign = -1 if options.monitor == "loss" else 1
    # Of equal figures `max` gives the first.
    improved = max(
        state.results, key=lambda result: sign * _monitored(_metrics_of(result), options.monitor)
    )
    return len(state.history) - improved.epoch >= options.early_stopping


def _explaining_memory(loop: LoopOptions) -> AbstractContextManager[None]:
    """One process has cut its batches as finely as it can before an error comes here."""
    if loop.ranks.world_size == 1:
        hint = "choose a smaller model, lower data.img_size, or end what else uses the memory"
    else:
        hint = (
            "raise train.accumulation_steps, which cuts a batch into parts that are computed one "
            "after the other; or lower train.batch_size or data.img_size"
        )
    return explaining_memory(loop.device, hint=hint)


def _evaluate(state: TrainState, val: Batches, options: FitOptions) -> EpochMetrics:
    outputs = compute_outputs(
        state.evaluated_model,
        val,
        num_classes=options.num_classes,
        device=options.loop.device,
        dtype=options.eval_dtype,
        ranks=options.loop.ranks,
    )
    if not np.isfinite(outputs.logits).all():
        raise TrainError(
            "the model's outputs on the val split are not finite, so the weights are lost",
            hint=DIVERGED_HINT,
        )
    return compute_epoch_metrics(outputs.logits, outputs.targets)


def _is_better(metrics: EpochMetrics, best: EpochResult | None, monitor: str) -> bool:
    """Whether an epoch takes the place of the best so far.

    Small val splits give many epochs the same accuracy: of these the one with the lowest loss is
    the surest of its answers, and of equal losses the later one has learned longer.
    """
    if best is None:
        return True
    new, old = (
        ((0.0 if monitor == "loss" else _monitored(figures, monitor)), -figures.loss)
        for figures in (metrics, _metrics_of(best))
    )
    return new >= old


def _metrics_of(result: EpochResult) -> EpochMetrics:
    return EpochMetrics(result.val_loss, result.val_accuracy, result.val_macro_f1)


def _monitored(metrics: EpochMetrics, monitor: str) -> float:
    return float(getattr(metrics, monitor))


def _on_step(
    epoch: int, options: FitOptions, reporter: Reporter
) -> Callable[[int, int, LoopResult], None]:
    def report(step: int, steps: int, so_far: LoopResult) -> None:
        rate = so_far.num_images / max(so_far.seconds, 1e-9)
        reporter.on_step(
            StepProgress(epoch, options.epochs, step, steps, so_far.loss, so_far.accuracy, rate)
        )

    return report
