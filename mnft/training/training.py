"""The parts of a training, as `setup` builds them and the stages use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mnft.config.recipe import Choice
from mnft.config.schema import Config
from mnft.data.batches.batch import Batches, TrainBatches
from mnft.model.bundle import ModelCard
from mnft.tasks.base import Loss
from mnft.training.fit import FitOptions
from mnft.training.state import TrainState


@dataclass(frozen=True, slots=True)
class Training:
    """All that the stages of a training take, and what the run folder records.

    Attributes:
        config: every key resolved; trains the same run again.
        choices: what the recipe set in it.
        state: what changes.
        forward: the model, its compiled form or its distributed wrapper.
        train: training batches.
        train_view: every training image once, as evaluation sees it.
        val: batches of the val split.
        criterion: the loss.
        class_weights: (K,) of the loss, or None.
        options: what stays the same.
        card: for the saved model folders.
        feature_folder: where features of the frozen backbone can be kept, or None.
        contents: SHA-256 and class of each image of train and val, in order.
        facts: what was decided, in words, for people and the log.
    """

    config: Config
    choices: Sequence[Choice]
    state: TrainState
    forward: nn.Module
    train: TrainBatches
    train_view: Batches
    val: Batches
    criterion: Loss
    class_weights: Tensor | None
    options: FitOptions
    card: ModelCard
    feature_folder: Path | None
    contents: Mapping[str, Sequence[str]]
    facts: Mapping[str, Any]

    @property
    def stages(self) -> list[str]:
        """What is trained one after the other."""
        return list(self.config.train.stages or ["finetune"])
