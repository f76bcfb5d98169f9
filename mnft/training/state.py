"""What a training needs to go on exactly where it stopped, saved after epochs and within them."""

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
# States of before, newest first, for the case that the newest is damaged.
_EARLIER = ("resume-1.pt", "resume-2.pt")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PartialEpoch:
    """An epoch that is under way.

    Attributes:
        epoch: its number.
        updates: done in it.
        lr: the learning rate that it began with.
        totals: sums of the task's training figures, and the number of images, so far.
        seconds: that they took.
        waited: of these, for data.
        accumulation_steps: parts that batches are cut into by now.
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
    """The parts of a training that change, and how far it is.

    Random states are not among them: order, augmentation and dropout follow from the seed and
    the numbers of epoch and update.

    Attributes:
        model: the model itself, not its distributed wrapper.
        optimizer: of the model's parameters.
        schedule: of the optimizer's learning rate.
        scaler: of fp16's loss; does nothing for other types.
        ema: the averaged model, if there is one.
        history: the finished epochs.
        best: the result that the best model was saved with.
        num_updates: optimizer updates so far.
        head: the result of the head stage, once it is over.
        partial: the epoch that is under way; None between epochs.
        threads: of the CPU that compute the epoch that is under way; 0 before the first.
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
    partial: PartialEpoch | None = None
    threads: int = 0

    @property
    def results(self) -> list[EpochResult]:
        """Of the head stage, if there was one, and of the epochs."""
        return [*([self.head] if self.head else []), *self.history]

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved: the average where there is one."""
        if self.ema is None:
            return self.model
        averaged: nn.Module = self.ema.module
        return averaged


def describe_state(state: TrainState) -> dict[str, Any]:
    """Put together what resume.pt holds; its tensors are those that the training changes."""
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
        "partial": None if state.partial is None else asdict(state.partial),
        "threads": state.threads,
    }


def copy_to_cpu(content: Any) -> Any:
    """Copy what `describe_state` gives, so that it stays as it is while the training goes on."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        copied = copy.copy(content)  # of a state dict also the versions that torch keeps with it
        copied.update((key, copy_to_cpu(value)) for key, value in content.items())
        return copied
    return [copy_to_cpu(value) for value in content] if isinstance(content, list) else content


def save_state(content: Mapping[str, Any], path: Path) -> None:
    """Write resume.pt atomically; the two states before it stay, as resume-1.pt and resume-2.pt.

    Args:
        content: from `describe_state`.
        path: of resume.pt.
    """
    with files.atomic_path(path) as temporary:
        _write(content, temporary)
        _keep_earlier(path)


def has_state(path: Path) -> bool:
    """Whether there is resume.pt or a state before it."""
    return any(p.exists() for p in (path, *(path.with_name(name) for name in _EARLIER)))


def _write(content: Mapping[str, Any], path: Path) -> None:
    # Through a stream of ours: what torch says of a full disk is "unexpected pos".
    with path.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _keep_earlier(path: Path) -> None:
    """Give resume.pt a second name, so that replacing it does not remove it."""
    newer, older = (path.with_name(name) for name in _EARLIER)
    if newer.is_file():
        newer.replace(older)
    if path.is_file():
        try:
            newer.hardlink_to(path)
        except OSError:  # file systems without hard links
            shutil.copyfile(path, newer)


def load_state(state: TrainState, path: Path) -> None:
    """Read resume.pt, or where it is damaged the state before it, into the parts of `state`.

    Raises:
        CheckpointError: missing, damaged with all before it, or of another model.
    """
    content = _read_newest(path)
    try:
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {content['format']}, expected {FORMAT}")
        state.model.load_state_dict(content["model"])
        if state.ema is not None:
            state.ema.module.load_state_dict(content["ema"])
        state.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # empty where the run began in another arithmetic than fp16
            state.scaler.load_state_dict(content["scaler"])
        state.schedule.load_state_dict(content["schedule"], content["num_updates"])
        state.history = [EpochResult.from_record(result) for result in content["history"]]
        state.best = None if content["best"] is None else EpochResult.from_record(content["best"])
        state.num_updates = content["num_updates"]
        head = content.get("head")  # older runs had no such stage
        state.head = None if head is None else EpochResult.from_record(head)
        partial = content.get("partial")
        state.partial = None if partial is None else PartialEpoch(**partial)
        state.threads = content.get("threads", 0)  # unknown to older runs
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this run: {error}") from error


def read_saved_progress(path: Path) -> tuple[int, int]:
    """The finished epochs that resume.pt holds, and the updates of the next; 0 without one."""
    if not has_state(path):
        return 0, 0
    content = _read_newest(path)
    partial = content.get("partial") or {}
    return len(content.get("history", [])), int(partial.get("updates", 0))


def _read_newest(path: Path) -> dict[str, Any]:
    """The newest state that is whole."""
    try:
        return _read(path)
    except CheckpointError as error:
        for earlier in (path.with_name(name) for name in _EARLIER):
            try:
                content = _read(earlier)
            except CheckpointError:
                continue
            _log.warning("%s; going on from %s, the state before it", error.message, earlier.name)
            return content
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        _check_sums(path)
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
        # torch's own text goes on for lines about loading it unsafely.
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged resume state: {reason}",
            hint=f"a new run can start from model.name: local-dir:{path.parent / 'last'}",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged resume state")
    return content


def _check_sums(path: Path) -> None:
    """Compare each part of the file with its CRC-32, which torch writes and does not read.

    Raises:
        zipfile.BadZipFile: one differs.
    """
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
