"""The stages of a training in order: the head on features computed once, then fine-tuning."""

from __future__ import annotations

import logging
import time

import torch

from mnft.data.batches.batch import Batches
from mnft.device.memory import peak_memory_mb, reset_peak_memory
from mnft.device.ranks.distributed import broadcast
from mnft.reporter import SILENT, Reporter
from mnft.results import EpochResult, FitResult
from mnft.seeding import derive_seed
from mnft.signals import stop_request
from mnft.training.fit import Checkpointer, fit
from mnft.training.head.cache import cached, compute_key
from mnft.training.head.fit import Features, HeadFit, compute_features, fit_head, set_head
from mnft.training.training import Training

_LOGGER = logging.getLogger(__name__)


def train(
    training: Training,
    *,
    checkpointer: Checkpointer | None,
    reporter: Reporter = SILENT,
) -> FitResult:
    """Go through the stages that are not done yet.

    A run that was killed within the head stage begins it again, and comes to the same result.

    Args:
        training: its state is changed in place.
        checkpointer: writes files; None in processes that do not.
        reporter: told of progress and epochs; silent in processes that do not speak.

    Raises:
        MnftError: as `fit`, and what keeps features from being computed.
    """
    try:
        return _train(training, checkpointer, reporter)
    finally:
        training.options.threads.release()


def _train(training: Training, checkpointer: Checkpointer | None, reporter: Reporter) -> FitResult:
    state = training.state
    if "head" in training.stages and state.head is None:
        state.head = state.best = train_head(training, reporter)
        if checkpointer:
            with stop_request.deferred():
                checkpointer.save_epoch(state, state.head)
        reporter.on_epoch(state.head)
    if "finetune" not in training.stages:
        return FitResult([], state.best, stopped_early=False)
    return fit(
        state,
        training.forward,
        training.train,
        training.val,
        training.criterion,
        training.options,
        checkpointer=checkpointer,
        reporter=reporter,
    )


def train_head(training: Training, reporter: Reporter = SILENT) -> EpochResult:
    """Fit the classifier, put it into the model (and its average), and judge the model."""
    options, state = training.options, training.state
    started = time.perf_counter()
    state.threads = options.threads.choose(options.loop.dtype)
    reset_peak_memory(options.loop.device)
    fitted, num_images, seconds = _fit_head(training, reporter)
    set_head(state.model, fitted)
    if state.ema is not None:
        set_head(state.ema.module, fitted)
    metrics = fitted.val
    return EpochResult(
        epoch=0,
        epochs=options.epochs,
        train_loss=fitted.train.loss,
        train_accuracy=fitted.train.accuracy,
        val_loss=metrics.loss,
        val_accuracy=metrics.accuracy,
        val_macro_f1=metrics.macro_f1,
        lr=0.0,
        images_per_s=num_images / max(seconds, 1e-9),
        seconds=time.perf_counter() - started,
        is_best=True,
        stage="head",
        peak_memory_mb=peak_memory_mb(options.loop.device),
        threads=state.threads,
        max_threads=options.threads.most,
    )


def _fit_head(training: Training, reporter: Reporter) -> tuple[HeadFit, int, float]:
    """The fitted classifier, the images that features were computed of, and the seconds."""
    options = training.options
    started = time.perf_counter()
    # Validation in its own precision, through features that are exact: what `mnft eval` gives.
    train = _compute(training, training.train_view, options.loop.dtype, "train", reporter)
    val = _compute(training, training.val, options.eval_dtype, "val", reporter)
    seconds = time.perf_counter() - started
    # Once, not in each process: GPUs that differ by a rounding may choose another weight decay,
    # and DistributedDataParallel has copied the main process's weights before.
    fitted = broadcast(
        options.loop.ranks,
        lambda: fit_head(
            train,
            val,
            num_classes=options.num_classes,
            class_weights=training.class_weights,
            seed=derive_seed(options.seed, 0),
            device=options.loop.device,
        ),
    )
    _LOGGER.info("head: weight decay %g, chosen on the val split", fitted.weight_decay)
    return fitted, len(train.targets) + len(val.targets), seconds


def _compute(
    training: Training, batches: Batches, dtype: torch.dtype, split: str, reporter: Reporter
) -> Features:
    """The features of a split, from the cache where an earlier run has left them."""
    model, loop = training.state.model, training.options.loop

    def compute() -> Features:
        with reporter.count(f"features of {split}", len(training.contents[split])) as advance:
            return compute_features(
                model,
                batches,
                device=loop.device,
                dtype=dtype,
                ranks=loop.ranks,
                on_images=advance,
            )

    return cached(
        training.feature_folder,
        lambda: compute_key(
            model, training.card.preprocessing, dtype, [loop.device.type, *training.contents[split]]
        ),
        compute,
        loop.ranks,
    )


def compare_with_head(result: FitResult, training: Training) -> str | None:
    """Say that fine-tuning did not improve on the fitted head, and what to try; else None."""
    head, epochs = result.best, [r for r in result.epochs if r.stage != "head"]
    if head is None or head.stage != "head" or not epochs:
        return None
    figure = {"accuracy": "val_accuracy", "macro_f1": "val_macro_f1", "loss": "val_loss"}
    name = figure[training.options.monitor]
    choose = min if name == "val_loss" else max
    epoch = choose(epochs, key=lambda result: float(getattr(result, name)))
    shape = ".2%" if name == "val_accuracy" else ".4f"
    best, before = (format(getattr(result, name), shape) for result in (epoch, head))
    lr = training.config.optim.lr
    return (
        f"fine-tuning did not beat the head ({name} {best} in epoch {epoch.epoch}, the head "
        f"{before}), so the best model is the head's; to try: a lower rate (--set "
        f"optim.lr={lr / 3:.1g}), more epochs (--set train.epochs={2 * len(epochs)}), more images"
    )
