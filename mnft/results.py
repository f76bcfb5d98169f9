"""Plain result records that pass between layers; no torch, no numpy, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Where an epoch stands; sent to the observer a few times a second, not at each step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One finished epoch; `epoch` counts from 1, `lr` is the rate that it began with.

    Losses are mean cross-entropies in nats, accuracies and F1 shares in [0, 1]. The training
    figures are taken while the weights change, the val figures at the epoch's end. `stage` names
    the part of the training that the epoch belongs to. `data_wait` is the fraction of
    the training's seconds that went by until batches were there, None where the images lie in the
    device's memory and nothing is waited for; `peak_memory_mb` is the most memory
    (10^6 bytes) that the device had given out, `threads` the number that computed on the CPU, and
    `max_threads` what it would be on a quiet machine; 0 where it is not known.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    lr: float
    images_per_s: float
    seconds: float
    is_best: bool
    stage: str = "finetune"
    data_wait: float | None = 0.0
    peak_memory_mb: float = 0.0
    threads: int = 0
    max_threads: int = 0


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a training ended; `stopped_early` says that patience ran out."""

    epochs: list[EpochResult]
    best: EpochResult | None
    stopped_early: bool
