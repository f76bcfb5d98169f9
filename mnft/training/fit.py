"""The epochs of a training: when to evaluate, what is best, when to save, when to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mnft.data.batches.batch import Batch, Batches, TrainBatches
from mnft.device.cpu.threads import Threads
from mnft.device.memory import explaining_memory, peak_memory_mb, reset_peak_memory
from mnft.device.select import seed_everything
from mnft.errors import Interrupted, ModelError, TrainError
from mnft.reporter import Reporter
from mnft.results import EpochResult, FitResult, StepProgress
from mnft.seeding import derive_seed
from mnft.signals import stop_request
from mnft.tasks.base import Loss
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.epoch.loop import DIVERGED_HINT, LoopResult, train_one_epoch
from mnft.training.epoch.snapshots import Snapshots
from mnft.training.inference import run_model
from mnft.training.state import TrainState


class Checkpointer(Protocol):
    """Saves and logs what an epoch leaves."""

    def save_epoch(self, state: TrainState, result: EpochResult) -> None:
        """Log a finished epoch and save it, or hold it in memory until the next save."""

    def snapshot(self, state: TrainState) -> None:
        """Save only the resume state, within an epoch."""

    def save_interpolated(self, state: TrainState, weights: Mapping[str, Tensor]) -> None:
        """Log the result of interpolation, and save the state and the best model."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What stays the same over the epochs.

    Attributes:
        epochs: number of epochs to train in all.
        monitor: figure of the val split that chooses the best epoch, one of the task's `monitors`.
            Ties go to the lower loss, then to the later epoch.
        early_stopping: epochs without improvement before stopping, or None.
        seed: seed of order, augmentation and dropout.
        loop: how updates are computed.
        stage: stage of the training, for the records.
        snapshot_minutes: minutes between two snapshots within an epoch, or None; only with one
            process.
        threads: how many threads compute on the CPU.
    """

    epochs: int
    monitor: str
    early_stopping: int | None
    seed: int
    loop: LoopOptions
    stage: str = "finetune"
    snapshot_minutes: float | None = None
    threads: Threads = field(
        default_factory=lambda: Threads(torch.get_num_threads(), follows=False)
    )

    def better(self, figure: float) -> float:
        """Give the monitored figure a sign, so that higher is always better."""
        return -figure if self.loop.task.monitors[self.monitor] is min else figure


def fit(
    state: TrainState,
    forward: nn.Module,
    train: TrainBatches,
    val: Batches,
    criterion: Loss,
    options: FitOptions,
    *,
    checkpointer: Checkpointer | None,
    reporter: Reporter,
) -> FitResult:
    """Train until the epochs are done or patience runs out; continues after `state.history`.

    Args:
        state: model, optimizer, history and the rest; changed in place.
        forward: the model, or its distributed wrapper.
        train: training batches.
        val: evaluation batches of the val split.
        criterion: summed loss.
        options: what stays the same.
        checkpointer: writes files; None in processes that do not write.
        reporter: told of progress and epochs; silent in processes that do not speak.

    Raises:
        TrainError: the loss or the model's outputs are not finite; what was saved before stays.
    """
    loop, machine = options.loop, options.loop.machine
    for epoch in range(len(state.history) + 1, options.epochs + 1):
        if out_of_patience(state, options):
            break
        started = time.perf_counter()
        reset_peak_memory(machine.device)
        begun = state.partial
        # The rest of an epoch is computed with the threads that it began with: the order in which
        # numbers are summed, and with it the last bits, follows from their number.
        before = state.threads if begun else 0
        state.threads = options.threads.choose(begun_with=before)
        lr = begun.lr if begun else state.schedule.lr
        train.sampler.set_epoch(epoch, done=begun.updates if begun else 0)
        # Each epoch, and each process, has its own stream of dropout and the like.
        seed = derive_seed(options.seed, epoch, machine.ranks.rank)
        seed_everything(seed)
        snapshots = None
        # Several processes would have to agree on the update to stop at, so they save only whole
        # epochs.
        if checkpointer is not None and machine.ranks.world_size == 1:
            snapshots = Snapshots(state, checkpointer.snapshot, options.snapshot_minutes)

        def on_step(step: int, steps: int, so_far: LoopResult, epoch: int = epoch) -> None:
            rate = so_far.num_images / max(so_far.seconds, 1e-9)
            reporter.on_step(StepProgress(epoch, options.epochs, step, steps, so_far.figures, rate))

        try:
            # With snapshots, the first signal waits for the end of the current update, and what was
            # done is saved; without them it stops the training at once, and the epoch is lost.
            with (
                stop_request.deferred() if snapshots else nullcontext(),
                explaining_memory(machine.device, hint=_memory_hint(loop)),
            ):
                trained = train_one_epoch(
                    state,
                    forward,
                    train,
                    criterion,
                    loop,
                    on_step=on_step,
                    seed=seed,
                    snapshots=snapshots,
                )
            with explaining_memory(machine.device, hint="lower eval.batch_size"):
                val_figures, settings = evaluate(state.evaluated_model, val, loop)
        except (Interrupted, KeyboardInterrupt):
            # The updates are done if `partial` is set: then a resumed run has only to evaluate.
            if checkpointer and state.partial is not None:
                checkpointer.snapshot(state)
            raise
        state.partial = None
        images_per_s = trained.num_images / max(trained.seconds, 1e-9)
        options.threads.note_rate(images_per_s)  # a later choice of threads trusts it over a trial
        # Where memory ran out, the next epoch begins with the parts that were small enough.
        loop = replace(loop, accumulation_steps=trained.accumulation_steps)
        waited = trained.waited
        result = EpochResult(
            epoch=epoch,
            epochs=options.epochs,
            figures=join_figures(trained.figures, val_figures),
            lr=lr,
            images_per_s=images_per_s,
            seconds=time.perf_counter() - started,
            is_best=_is_best(val_figures, state.best, options),
            stage=options.stage,
            data_wait=None if waited is None else waited / max(trained.seconds, 1e-9),
            peak_memory_mb=peak_memory_mb(machine.device),
            threads=state.threads,
            max_threads=options.threads.most,
            settings=settings,
        )
        state.history.append(result)
        state.best = result if result.is_best else state.best
        state.schedule.after_epoch(epoch, val_figures[options.monitor])
        if checkpointer:
            # A signal waits until the models, the state and the log line are all written.
            with stop_request.deferred():
                checkpointer.save_epoch(state, result)
        reporter.on_epoch(result)
    return FitResult(list(state.history), state.best, out_of_patience(state, options))


class Judged(NamedTuple):
    """What an evaluation gives: see `mnft.tasks.base.Score`."""

    figures: dict[str, float]
    settings: dict[str, Any]
    fitted_loss: float


def evaluate(
    model: nn.Module, batches: Batches, loop: LoopOptions
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compute the task's figures of a model on all images of the batches, and fit its settings.

    Raises:
        TrainError: the model's outputs are not finite.
    """
    judged = judge(model, batches, loop)
    return judged.figures, judged.settings


def judge(model: nn.Module, batches: Batches, loop: LoopOptions) -> Judged:
    """Do what `evaluate` does, and say by what loss the model compares with others.

    Raises:
        TrainError: the model's outputs are not finite.
    """
    score = loop.task.new_score(loop.machine.ranks)

    def update(batch: Batch, outputs: Tensor) -> None:
        score.update(batch.positions, outputs, batch.targets)

    run_model(model, batches, loop.machine, update)
    try:
        return Judged(score.result(), score.fit_settings(), score.fitted_loss())
    except ModelError as error:
        raise TrainError(
            "the model's outputs on the val split are not finite, so the weights are lost",
            hint=DIVERGED_HINT,
        ) from error


def join_figures(train: Mapping[str, float], val: Mapping[str, float]) -> dict[str, float]:
    """Put figures of both splits side by side: `train_loss`, `val_loss` and so on."""
    return {
        f"{split}_{name}": figures[name]
        for split, figures in (("train", train), ("val", val))
        for name in figures
    }


def out_of_patience(state: TrainState, options: FitOptions) -> bool:
    """Whether the monitored figure has not improved for `early_stopping` epochs.

    An epoch that is the best only by its lower loss, with an equal figure, is no improvement: a
    loss that creeps down while the figure stands still must not keep a run going for ever.
    """
    if options.early_stopping is None or not state.results:
        return False
    name = f"val_{options.monitor}"
    # Of equal figures `max` returns the first.
    improved = max(state.results, key=lambda result: options.better(result.figures[name]))
    return len(state.history) - improved.epoch >= options.early_stopping


def _is_best(figures: dict[str, float], best: EpochResult | None, options: FitOptions) -> bool:
    """Whether an epoch replaces the best so far.

    On small val splits many epochs have the same figure. Of these the one with the lowest loss is
    the surest of its answers; of equal losses the later one has learned longer.
    """
    if best is None:
        return True
    old = {name: best.figures[f"val_{name}"] for name in figures}
    new_rank, old_rank = ((options.better(f[options.monitor]), -f["loss"]) for f in (figures, old))
    return new_rank >= old_rank


def _memory_hint(loop: LoopOptions) -> str:
    # Where one process trains, its batches are in the smallest parts already.
    if loop.machine.ranks.world_size == 1:
        return "choose a smaller model, lower data.img_size, or end what else uses the memory"
    return (
        "raise train.accumulation_steps, which cuts a batch into parts that are computed one "
        "after the other; or lower train.batch_size or data.img_size"
    )
