"""What each epoch leaves in the run folder: models, resume state, log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from mnft.config.load import save_config
from mnft.data.lineage import pack
from mnft.errors import CheckpointError, Interrupted, MnftError
from mnft.model.bundle import ModelCard, save_bundle
from mnft.results import EpochResult
from mnft.runs.begin import Run
from mnft.runs.folder import RunFolder, log_epoch, log_event, reconcile_log, remove_leftovers
from mnft.runs.lock import RunLock
from mnft.runs.resume import describe_stop
from mnft.runs.tensorboard import open_writer
from mnft.signals import stop_request
from mnft.tasks.base import Task
from mnft.training.fit import out_of_patience
from mnft.training.state import TrainState, copy_to_cpu, describe_state, save_state

_log = logging.getLogger(__name__)
# Least seconds between two saves of finished epochs.
SAVE_INTERVAL_S = 5.0


class _Model(NamedTuple):
    """What goes into a model folder: weights by name, what is said of them, and the record."""

    weights: Mapping[str, Tensor]
    card: ModelCard
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Unsaved:
    """The last finished epoch, and the best one where its model is not on the disk yet."""

    best: _Model | None
    last: _Model
    state: Mapping[str, Any]


@dataclass
class RunWriter:
    """Writes what each epoch leaves: models, resume state, log line, TensorBoard.

    Writing the models and the state takes as long as a short epoch. An epoch that ends within
    SAVE_INTERVAL_S of the last save is therefore only logged and copied to memory, and written with
    the next save. As a context manager it writes what is still in memory when the block ends, for
    any reason. Only a process that is killed loses it; a resumed run then computes it again.

    Attributes:
        run: the folder to write into.
        card: what a model folder says of the model beside its weights.
        facts: entries of mnft.json that stay the same; the epoch's result is added to them.
        tensorboard: a SummaryWriter, or None.
        lock: proof that the folder is still the run's own.
    """

    run: RunFolder
    card: ModelCard
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensorboard: Any = None
    lock: RunLock | None = None
    _unsaved: _Unsaved | None = field(default=None, init=False, repr=False)
    _saved_at: float = field(default=-math.inf, init=False, repr=False)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            with stop_request.deferred():
                self._save()
            return
        # What ended the training must be reported, not that this save failed as well.
        with suppress(OSError, RuntimeError, MemoryError, CheckpointError):
            self._save()

    def save_epoch(self, state: TrainState, result: EpochResult) -> None:
        """Save a finished epoch, or keep it in memory if the last save was a moment ago."""
        self._check_lock()
        content = describe_state(state)
        is_due = time.monotonic() - self._saved_at >= SAVE_INTERVAL_S
        if not is_due:
            content = copy_to_cpu(content)
        weights = content["model"] if content["ema"] is None else content["ema"]
        last = _Model(
            weights,
            replace(self.card, settings=result.settings),
            {**self.facts, "result": result.as_record()},
        )
        best = self._unsaved.best if self._unsaved else None
        self._unsaved = _Unsaved(last if result.is_best else best, last, content)
        if is_due:
            self._save()
        log_epoch(self.run, result)
        if self.tensorboard is not None:
            for name, value in result.as_record().items():
                if isinstance(value, float):
                    self.tensorboard.add_scalar(name.replace("_", "/", 1), value, result.epoch)
            self.tensorboard.flush()

    def save_interpolated(self, state: TrainState, weights: Mapping[str, Tensor]) -> None:
        """Save the best of the interpolated models, and log its result."""
        self._check_lock()
        self._save()
        result = state.interpolated
        assert result is not None
        card = replace(self.card, settings=result.settings)
        save_bundle(self.run.best, weights, card, {**self.facts, "result": result.as_record()})
        self._save(describe_state(state))
        log_epoch(self.run, result)

    def snapshot(self, state: TrainState) -> None:
        """Save the resume state within an epoch, after the models of the epochs before."""
        self._save(describe_state(state))

    def _save(self, state: Mapping[str, Any] | None = None) -> None:
        """Write what is in memory; the state comes after the models that it refers to.

        Args:
            state: a newer state than the one in memory.
        """
        # Emptied first, so that a second signal, which interrupts the save, does not repeat it.
        unsaved, self._unsaved = self._unsaved, None
        if unsaved is None and state is None:
            return
        self._check_lock()
        if unsaved is not None:
            if unsaved.best is not None:
                save_bundle(self.run.best, *unsaved.best)
            save_bundle(self.run.last, *unsaved.last)
            state = state or unsaved.state
        assert state is not None
        save_state(state, self.run.resume)
        self._saved_at = time.monotonic()

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()


@contextmanager
def recorded(run: Run) -> Iterator[RunWriter]:
    """Log how a training begins and ends; inside the block, a writer saves its epochs.

    Raises:
        Interrupted: Ctrl-C or a signal ended the training; the message says how to resume it.
        MnftError: another error ended it.
    """
    folder, training = run.folder, run.training
    facts = {
        "split_fingerprint": run.manifest.fingerprint,
        "monitor": training.config.eval.monitor,
        "trained_on": pack(run.manifest.trained_on),
    }
    if teachers := training.facts["teachers_sha256"]:
        facts["teachers_sha256"] = teachers
    tensorboard = open_writer(folder.path, training.config.run)
    try:
        _log_beginning(run)
        with RunWriter(folder, training.card, facts, tensorboard, run.lock) as writer:
            yield writer
    except (MnftError, KeyboardInterrupt, Interrupted) as error:
        # A full disk, or a folder that was removed, must not hide what ended the training.
        with suppress(OSError, CheckpointError):
            run.lock.check()
            log_event(folder, "stop", {"reason": type(error).__name__, "message": str(error)})
        if isinstance(error, MnftError):
            raise
        raise describe_stop(error, folder) from error
    finally:
        if tensorboard is not None:
            tensorboard.close()
    stopped_early = out_of_patience(training.state, training.options)
    log_event(folder, "stop", {"reason": "early stopping" if stopped_early else "all epochs done"})


def _log_beginning(run: Run) -> None:
    folder, training = run.folder, run.training
    config = training.config.model_dump()
    if run.resumed:
        remove_leftovers(folder)
        save_config(training.config, folder.config)
        state = training.state
        last = [state.interpolated] if state.interpolated else []
        reconcile_log(folder, [*state.results, *last])
        done, lr = len(training.state.history), training.state.schedule.lr
        log_event(
            folder, "resume", {**training.facts, "epochs_done": done, "lr": lr, "config": config}
        )
        return
    recipe = {choice.key: choice.value for choice in training.choices}
    reasons = {choice.key: choice.reason for choice in training.choices}
    log_event(
        folder,
        "start",
        {**training.facts, "recipe": recipe, "recipe_reasons": reasons, "config": config},
    )


def draw_curve(run: RunFolder, task: Task, results: Sequence[EpochResult], monitor: str) -> None:
    """Draw the curve of a finished run; a plot that fails does not fail the training.

    Args:
        run: the run folder, which gets training_curve.png.
        task: draws the plot.
        results: results of the head stage, if there was one, and of the epochs; nothing is drawn
            for fewer than two.
        monitor: figure that chose the best epoch.
    """
    if len(results) < 2:
        return
    try:
        task.plot_training(results, run.curve, monitor)
    except (ImportError, OSError, MemoryError, RuntimeError, ValueError) as error:
        _log.warning("%s was not drawn: %s", run.curve, error)
