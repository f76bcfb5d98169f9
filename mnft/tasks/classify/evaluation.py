"""The full evaluation of a classifier, as a plain record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Averages:
    """Precision, recall and F1 in [0, 1], averaged over classes in one way."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How well one class is told from the others; precision, recall and F1 in [0, 1].

    `support` counts the images of the class, `predicted` the images that were predicted as it.
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

    `accuracy`, `top5` and `ece` are fractions in [0, 1]; `top5` is None with five classes or fewer.
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
