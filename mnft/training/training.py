"""The parts of a training, which `build` makes and the stages use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mnft.config.recipe import Choice
from mnft.config.schema import Config
from mnft.data.batches.batch import Batches, TrainBatches
from mnft.device.machine import Machine
from mnft.model.bundle import ModelCard
from mnft.tasks.base import Loss, Task
from mnft.training.fit import FitOptions
from mnft.training.state import TrainState


@dataclass(frozen=True, slots=True)
class Training:
    """All that the stages of a training need, and what the run folder records.

    Attributes:
        config: the config with every key resolved; it trains the same run again.
        choices: what the recipe set in it.
        state: model, optimizer, history and everything else that changes.
        forward: the model, its compiled form or its distributed wrapper.
        train: training batches.
        train_view: every training image once, as evaluation sees it.
        val: batches of the val split.
        criterion: the loss.
        options: settings that stay the same over the epochs.
        card: what a saved model folder says of the model, beside its weights.
        feature_folder: where features of the frozen backbone can be kept, or None.
        contents: SHA-256 and label of each image of train and val, in order.
        facts: what was found and decided, for people and the log.
    """

    config: Config
    choices: Sequence[Choice]
    state: TrainState
    forward: nn.Module
    train: TrainBatches
    train_view: Batches
    val: Batches
    criterion: Loss
    options: FitOptions
    card: ModelCard
    feature_folder: Path | None
    contents: Mapping[str, Sequence[str]]
    facts: Mapping[str, Any]

    @property
    def machine(self) -> Machine:
        """Where the model is trained."""
        return self.options.loop.machine

    @property
    def task(self) -> Task:
        """What the model is trained to do."""
        return self.options.loop.task

    @property
    def stages(self) -> list[str]:
        """The stages, in order."""
        return list(self.config.train.stages or ["finetune"])
