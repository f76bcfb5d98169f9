"""What a training needs to go on exactly where it stopped, saved after each epoch."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from mnft import files
from mnft.engine.optim import Schedule
from mnft.errors import CheckpointError
from mnft.results import EpochResult

FORMAT = 1


@dataclass
class TrainState:
    """The parts of a training that change, and how far it is.

    Random states are not among them: order, augmentation and dropout of an epoch follow from the
    seed and the epoch's number.

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
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    history: list[EpochResult] = field(default_factory=list)
    best: EpochResult | None = None
    num_updates: int = 0
    head: EpochResult | None = None

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


def save_state(state: TrainState, path: Path) -> None:
    """Write resume.pt atomically."""
    content = {
        "format": FORMAT,
        "model": state.model.state_dict(),
        "ema": None if state.ema is None else state.ema.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "history": [asdict(result) for result in state.history],
        "best": None if state.best is None else asdict(state.best),
        "num_updates": state.num_updates,
        "head": None if state.head is None else asdict(state.head),
    }
    with files.atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_state(state: TrainState, path: Path) -> None:
    """Read resume.pt into the parts of `state`.

    Raises:
        CheckpointError: missing, damaged, or of another model.
    """
    content = _read(path)
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
        state.history = [EpochResult(**result) for result in content["history"]]
        state.best = None if content["best"] is None else EpochResult(**content["best"])
        state.num_updates = content["num_updates"]
        head = content.get("head")  # older runs had no such stage
        state.head = None if head is None else EpochResult(**head)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this run: {error}") from error


def count_saved_epochs(path: Path) -> int:
    """The epochs that resume.pt holds; 0 where there is none."""
    return len(_read(path).get("history", [])) if path.is_file() else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file: the run has not finished an epoch",
            hint="start it again with `mnft train CONFIG`",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # torch's own text goes on for lines about loading it unsafely.
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged resume state: {reason}",
            hint=f"a new run can start from model.name: local-dir:{path.parent / 'last'}",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged resume state")
    return content
