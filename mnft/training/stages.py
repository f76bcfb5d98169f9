"""The stages of a training in order: the head on features computed once, then fine-tuning."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from mnft.data.batches.batch import Batches
from mnft.device.memory import peak_memory_mb, reset_peak_memory
from mnft.device.ranks.distributed import broadcast
from mnft.reporter import SILENT, Reporter
from mnft.results import EpochResult, FitResult
from mnft.seeding import derive_seed
from mnft.signals import stop_request
from mnft.tasks.outputs import Features
from mnft.training.fit import Checkpointer, fit, join_figures
from mnft.training.head.cache import cached, compute_key
from mnft.training.head.features import compute_features, set_head
from mnft.training.interpolate import interpolate
from mnft.training.state import TrainState, copy_to_cpu
from mnft.training.training import Training

_log = logging.getLogger(__name__)


def train(
    training: Training, *, checkpointer: Checkpointer | None, reporter: Reporter
) -> FitResult:
    """Run the stages that are not done yet.

    A run that was killed in the head stage repeats that stage, with the same result.

    Args:
        training: the parts of the training; the state is changed in place.
        checkpointer: writes files; None in processes that do not write.
        reporter: told of progress and epochs; silent in processes that do not speak.

    Raises:
        MnftError: `fit` fails, or the features cannot be computed.
    """
    state = training.state
    try:
        if "head" in training.stages and state.head is None:
            state.head = state.best = train_head(training, reporter)
            if "interpolate" in training.stages:
                state.head_weights = copy_to_cpu(state.evaluated_model.state_dict())
            if checkpointer:
                with stop_request.deferred():
                    checkpointer.save_epoch(state, state.head)
            reporter.on_epoch(state.head)
        if "finetune" not in training.stages:
            return FitResult([], state.best, stopped_early=False)
        result = fit(
            state,
            training.forward,
            training.train,
            training.val,
            training.criterion,
            training.options,
            checkpointer=checkpointer,
            reporter=reporter,
        )
        if "interpolate" in training.stages and not _is_interpolated(state):
            state.interpolated, weights = interpolate(training)
            state.best = state.interpolated
            if checkpointer:
                with stop_request.deferred():
                    checkpointer.save_interpolated(state, weights)
            reporter.on_epoch(state.interpolated)
            result = replace(result, best=state.best)
        return result
    finally:
        training.options.threads.release()


def _is_interpolated(state: TrainState) -> bool:
    """Whether that was done after the last epoch; a run can be extended."""
    return state.interpolated is not None and state.interpolated.epoch == len(state.history)


def train_head(training: Training, reporter: Reporter = SILENT) -> EpochResult:
    """Fit the head, put it into the model (and its average), and evaluate the model."""
    options, state, machine = training.options, training.state, training.machine
    started = time.perf_counter()
    state.threads = options.threads.choose()
    reset_peak_memory(machine.device)
    computing = time.perf_counter()
    features = load_features(training, reporter)
    seconds = time.perf_counter() - computing
    # Only the main process fits, and the others get its head: GPUs that differ by a rounding may
    # choose different regularisation, and DistributedDataParallel, which made the weights equal,
    # did so before and does not do it again.
    fitted = broadcast(
        machine.ranks,
        lambda: training.task.fit_head(
            *features,
            balanced=training.config.train.class_weights == "balanced",
            seed=derive_seed(options.seed, 0),
            device=machine.device,
        ),
    )
    _log.info("head: %s", fitted.description)
    set_head(state.model, fitted)
    if state.ema is not None:
        set_head(state.ema.module, fitted)
    num_images = sum(len(part.targets) for part in features)
    return EpochResult(
        epoch=0,
        epochs=options.epochs,
        figures=join_figures(
            {name: fitted.train[name] for name in training.task.train_figures}, fitted.val
        ),
        lr=0.0,
        images_per_s=num_images / max(seconds, 1e-9),
        seconds=time.perf_counter() - started,
        is_best=True,
        stage="head",
        peak_memory_mb=peak_memory_mb(machine.device),
        threads=state.threads,
        max_threads=options.threads.most,
        settings=fitted.settings,
    )


def load_features(training: Training, reporter: Reporter) -> tuple[Features, Features]:
    """Load the features of train and val, or compute and keep them.

    Those of val are computed in the precision of evaluation, so that the head's figures are those
    that `mnft eval` gives.
    """
    machine = training.machine
    return (
        _load_split(training, training.train_view, machine.train_dtype, "train", reporter),
        _load_split(training, training.val, machine.eval_dtype, "val", reporter),
    )


def _load_split(
    training: Training, batches: Batches, dtype: torch.dtype, split: str, reporter: Reporter
) -> Features:
    """Load the features of a split from the cache of an earlier run, or compute them."""
    model, machine, contents = training.state.model, training.machine, training.contents[split]

    def compute() -> Features:
        with reporter.count(f"features of {split}", len(contents)) as advance:
            return compute_features(model, batches, machine, dtype=dtype, on_images=advance)

    # The targets are kept with the features, so they are those of one task and its labels.
    task = training.task
    made_from = [machine.device.type, task.name, *task.labels, *contents]
    return cached(
        training.feature_folder,
        lambda: compute_key(model, training.card.preprocessing, dtype, made_from),
        compute,
        machine.ranks,
    )


def compare_with_head(result: FitResult, training: Training) -> str | None:
    """Say what to try where fine-tuning did not improve on the fitted head; else None."""
    head, epochs = result.best, [r for r in result.epochs if r.stage != "head"]
    if head is None or head.stage != "head" or not epochs:
        return None
    name = f"val_{training.options.monitor}"
    choose = training.task.monitors[training.options.monitor]
    epoch = choose(epochs, key=lambda result: result.figures[name])
    # The figure beside the loss is a fraction of the images; the others have no unit.
    shape = ".2%" if training.options.monitor == training.task.train_figures[1] else ".4f"
    tuned, fitted = (format(result.figures[name], shape) for result in (epoch, head))
    lr = training.config.optim.lr
    return (
        f"fine-tuning did not beat the head ({name} {tuned} in epoch {epoch.epoch}, the head "
        f"{fitted}), so the best model is the head's; to try: a lower rate (--set "
        f"optim.lr={lr / 3:.1g}), more epochs (--set train.epochs={2 * len(epochs)}), more images"
    )
