"""Plain result records that pass between layers; no torch, no numpy, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Averages:
    """Precision, recall and F1 in [0, 1], averaged over classes in one way."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How well one class is told from the others; precision, recall and F1 in [0, 1].

    `support` counts the images of the class, `predicted` the images that were given it.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found on one set of images.

    `accuracy`, `top5` and `ece` are shares in [0, 1]; `top5` is None with five classes or fewer.
    `accuracy_interval` is the 95% Wilson score interval. `confusion[i][j]` counts the images of
    class i that were predicted as class j. `loss` is the mean cross-entropy in nats.
    """

    num_images: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float | None
    macro: Averages
    weighted: Averages
    ece: float
    per_class: list[ClassMetrics]
    confusion: list[list[int]]


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


class Observer(Protocol):
    """What the training loop tells whoever watches it."""

    def on_step(self, progress: StepProgress) -> None:
        """Called a few times a second within an epoch."""

    def on_epoch(self, result: EpochResult) -> None:
        """Called once at the end of each epoch."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a training ended; `stopped_early` says that patience ran out."""

    epochs: list[EpochResult]
    best: EpochResult | None
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that is named as an image but cannot be decoded, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a model costs: parameters, and multiply-accumulates of one image of `input_size`."""

    name: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    pretrained: bool
