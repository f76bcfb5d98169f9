"""The state of a training, saved so that it resumes exactly where it stopped."""

from __future__ import annotations

import copy
import logging
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnft import files
from mnft.errors import CheckpointError
from mnft.results import EpochResult
from mnft.training.epoch.average import WeightAverage
from mnft.training.optim import Schedule

FORMAT = 1
# The two previous states, newest first, are kept in case the newest is damaged.
_EARLIER = ("resume-1.pt", "resume-2.pt")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PartialEpoch:
    """An epoch that is under way.

    Attributes:
        epoch: number of the epoch.
        updates: number of updates done in it.
        lr: learning rate that it began with.
        totals: sums of the task's training figures so far, the number of images that have a label,
            and the number of all images.
        seconds: time that it has taken.
        waited: part of `seconds` that was spent waiting for data.
        accumulation_steps: number of parts that batches are cut into now.
    """

    epoch: int
    updates: int
    lr: float
    totals: tuple[float, ...]
    seconds: float
    waited: float
    accumulation_steps: int


@dataclass
class TrainState:
    """The parts of a training that change, and its progress.

    Random states are not among them: order, augmentation and dropout follow from the seed and the
    numbers of epoch and update.

    Attributes:
        model: the model itself, not its distributed wrapper.
        optimizer: optimizer of the model's parameters.
        schedule: schedule of the optimizer's learning rate.
        scaler: loss scaler for fp16; it does nothing in other precisions.
        ema: the averaged model, or None.
        history: results of the finished epochs.
        best: result of the epoch that the best model is from.
        num_updates: number of optimizer updates so far.
        head: result of the head stage, once it is finished.
        head_weights: weights of the evaluated model after that stage, if they are needed later.
        interpolated: result of the stage that interpolates, once it is finished.
        partial: the epoch that is under way; None between epochs.
        threads: number of CPU threads in the epoch that is under way; 0 before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None = None
    history: list[EpochResult] = field(default_factory=list)
    best: EpochResult | None = None
    num_updates: int = 0
    head: EpochResult | None = None
    head_weights: Mapping[str, Tensor] | None = None
    interpolated: EpochResult | None = None
    partial: PartialEpoch | None = None
    threads: int = 0

    @property
    def results(self) -> list[EpochResult]:
        """The results of the head stage, if there was one, and of the epochs."""
        return [*([self.head] if self.head else []), *self.history]

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved: the average where there is one."""
        if self.ema is None:
            return self.model
        averaged: nn.Module = self.ema.module
        return averaged


def describe_state(state: TrainState) -> dict[str, Any]:
    """Collect the content of resume.pt; its tensors are those that the training changes."""
    return {
        "format": FORMAT,
        "model": state.model.state_dict(),
        "ema": None if state.ema is None else state.ema.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "history": [result.as_record() for result in state.history],
        "best": None if state.best is None else state.best.as_record(),
        "num_updates": state.num_updates,
        "head": None if state.head is None else state.head.as_record(),
        "head_weights": state.head_weights,
        "interpolated": None if state.interpolated is None else state.interpolated.as_record(),
        "partial": None if state.partial is None else asdict(state.partial),
        "threads": state.threads,
    }


def copy_to_cpu(content: Any) -> Any:
    """Copy the result of `describe_state`, so that the training no longer changes it."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        copied = copy.copy(content)  # with the versions that torch attaches to a state dict
        copied.update((key, copy_to_cpu(value)) for key, value in content.items())
        return copied
    return [copy_to_cpu(value) for value in content] if isinstance(content, list) else content


def save_state(content: Mapping[str, Any], path: Path) -> None:
    """Write resume.pt atomically; the two states before it stay as resume-1.pt and resume-2.pt.

    Args:
        content: result of `describe_state`.
        path: where to write resume.pt.
    """
    with files.atomic_path(path) as temporary:
        _write(content, temporary)
        newer, older = (path.with_name(name) for name in _EARLIER)
        if newer.is_file():
            newer.replace(older)
        if path.is_file():
            # A second name keeps the old state when the new one replaces it.
            try:
                newer.hardlink_to(path)
            except OSError:  # file systems without hard links
                shutil.copyfile(path, newer)


def has_state(path: Path) -> bool:
    """Whether resume.pt or an older state exists."""
    return any(p.exists() for p in (path, *(path.with_name(name) for name in _EARLIER)))


def _write(content: Mapping[str, Any], path: Path) -> None:
    # With a stream of our own the system's error is known: for a full disk torch says only
    # "unexpected pos".
    with path.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_state(state: TrainState, path: Path) -> None:
    """Read resume.pt into the parts of `state`, or the state before it if it is damaged.

    Raises:
        CheckpointError: it is missing, all states are damaged, or it is of another model.
    """
    content = _read_newest(path)
    try:
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {content['format']}, expected {FORMAT}")
        state.model.load_state_dict(content["model"])
        if state.ema is not None:
            state.ema.module.load_state_dict(content["ema"])
        state.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # empty if the run began in another precision than fp16
            state.scaler.load_state_dict(content["scaler"])
        state.schedule.load_state_dict(content["schedule"], content["num_updates"])
        state.history = [EpochResult.from_record(result) for result in content["history"]]
        state.best = None if content["best"] is None else EpochResult.from_record(content["best"])
        state.num_updates = content["num_updates"]
        head = content.get("head")  # older runs had no head stage
        state.head = None if head is None else EpochResult.from_record(head)
        state.head_weights = content.get("head_weights")
        interpolated = content.get("interpolated")
        state.interpolated = None if interpolated is None else EpochResult.from_record(interpolated)
        partial = content.get("partial")
        state.partial = None if partial is None else PartialEpoch(**partial)
        state.threads = content.get("threads", 0)  # missing in older runs
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this run: {error}") from error


def read_saved_progress(path: Path) -> tuple[int, int]:
    """Read how many epochs are finished, and how many updates of the next; 0, 0 without a state."""
    if not has_state(path):
        return 0, 0
    content = _read_newest(path)
    partial = content.get("partial") or {}
    return len(content.get("history", [])), int(partial.get("updates", 0))


def _read_newest(path: Path) -> dict[str, Any]:
    """Read the newest state that is not damaged."""
    try:
        return _read(path)
    except CheckpointError as error:
        for earlier in (path.with_name(name) for name in _EARLIER):
            try:
                content = _read(earlier)
            except CheckpointError:
                continue
            _log.warning("%s; resuming from %s, the state before it", error.message, earlier.name)
            return content
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        # The CRC-32 of each part, which torch writes but does not check.
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file: the run has not finished an epoch",
            hint="start it again with `mnft train CONFIG`",
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        # torch adds lines of advice about loading it unsafely.
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged resume state: {reason}",
            hint=f"a new run can start from model.name: local-dir:{path.parent / 'last'}",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged resume state")
    return content
