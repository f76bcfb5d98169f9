"""Plain result records that pass between layers; no torch, no numpy, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far an epoch is; reported a few times a second, not at each step.

    Attributes:
        epoch: number of the epoch, from 1.
        epochs: number of all epochs.
        step: updates done in the epoch.
        steps: updates of the whole epoch.
        figures: means over the epoch's images so far, by the names that the task gives them.
        images_per_s: training images per second.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    figures: Mapping[str, float]
    images_per_s: float


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One finished epoch.

    Attributes:
        epoch: number of the epoch, from 1; 0 for the head stage.
        epochs: number of all epochs.
        figures: what the task measured, such as `train_loss` and `val_accuracy`. Training figures
            are means taken while the weights change, val figures are taken at the epoch's end.
        lr: learning rate at the beginning of the epoch.
        images_per_s: training images per second.
        seconds: duration of the epoch with its evaluation.
        is_best: whether the monitored figure is the best so far.
        stage: part of the training that the epoch belongs to.
        data_wait: fraction of the training's seconds that went by until batches were there; None
            if the images are in the device's memory, where nothing is waited for.
        peak_memory_mb: most memory in use at once, in 10^6 bytes; 0 if not known.
        threads: threads that computed on the CPU; 0 if not known.
        max_threads: threads that a quiet machine would have had; 0 if not known.
        settings: what the task fitted to the val split, to keep with the model; JSON values.
        share: share of the fine-tuned weights, for the stage that interpolates.
    """

    epoch: int
    epochs: int
    figures: Mapping[str, float]
    lr: float
    images_per_s: float
    seconds: float
    is_best: bool
    stage: str = "finetune"
    data_wait: float | None = 0.0
    peak_memory_mb: float = 0.0
    threads: int = 0
    max_threads: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None

    def as_record(self) -> dict[str, Any]:
        """Return the result as log.jsonl and resume.pt hold it, with the figures side by side."""
        record: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if (name == "settings" and not value) or (name == "share" and value is None):
                continue
            record |= value if name == "figures" else {name: value}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EpochResult:
        """Build the result again from `as_record`.

        Raises:
            TypeError: a value is missing.
        """
        known = {entry.name for entry in fields(cls)} - {"figures"}
        values = {name: value for name, value in record.items() if name in known}
        figures = {name: value for name, value in record.items() if name not in known}
        return cls(figures=figures, **values)


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a training ended; `stopped_early` says that patience ran out."""

    epochs: list[EpochResult]
    best: EpochResult | None
    stopped_early: bool
