"""Metrics of a classifier, as pure functions of logits, targets and counts.

Shapes: N images, C classes. `compute_epoch_metrics` and `compute_evaluation` share the code of the
figures that both compute, so validation during training and evaluation afterwards agree to the last
digit.

scikit-learn and SciPy have these metrics too, and the tests compare with them. They are not used
here because every training would wait for their import (tests/cli/test_startup.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnft.device.ranks.distributed import Ranks
from mnft.device.ranks.rows import Rows
from mnft.errors import DataError, ModelError
from mnft.tasks.classify.evaluation import (
    ECE_BINS,
    INTERVAL_LEVEL,
    Averages,
    ClassMetrics,
    Evaluation,
)

TOP_K = 5
# Rows are taken in float64, at most about 32 MiB at a time.
_CHUNK_ELEMENTS = 1 << 22


class EpochMetrics(NamedTuple):
    """What a validation within the training reports: loss in nats, the others in [0, 1]."""

    loss: float
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class _Scores:
    """One value an image: cross-entropy, predicted class, probability of that class; each (N,)."""

    losses: NDArray[Any]
    predictions: NDArray[Any]
    confidences: NDArray[Any]


def compute_evaluation(
    logits: NDArray[Any], targets: NDArray[Any], class_names: Sequence[str]
) -> Evaluation:
    """Evaluate the logits of a whole data set.

    The predicted class is the first of the largest logits. The macro averages are taken over the
    classes that have images in `targets`, so that classes which a subset lacks do not drag them
    down; the weighted averages weight each class by its images.

    Args:
        logits: (N, C) float, unnormalised and finite.
        targets: (N,) int in [0, C).
        class_names: C names, in the order of the logits.

    Raises:
        DataError: there are no images, or a target is outside the C classes.
        ModelError: logits that are not finite.
    """
    if len(class_names) != logits.shape[1]:
        raise ValueError(f"{len(class_names)} class names for {logits.shape[1]} logits")
    scores = _compute_scores(logits, targets)
    correct = scores.predictions == targets
    confusion = compute_confusion(targets, scores.predictions, num_classes=len(class_names))
    return Evaluation(
        num_images=len(targets),
        loss=float(scores.losses.mean()),
        accuracy=float(correct.mean()),
        accuracy_interval=compute_wilson_interval(int(correct.sum()), len(targets)),
        top5=compute_top_k(logits, targets, k=TOP_K) if len(class_names) > TOP_K else None,
        macro=_compute_averages(confusion, "macro"),
        weighted=_compute_averages(confusion, "weighted"),
        ece=compute_ece(scores.confidences, correct),
        per_class=_compute_class_metrics(confusion, class_names),
        confusion=confusion.tolist(),
    )


def compute_epoch_metrics(logits: NDArray[Any], targets: NDArray[Any]) -> EpochMetrics:
    """Compute what each epoch's validation needs, equal to `compute_evaluation` to the last digit.

    Args:
        logits: (N, C) float, unnormalised and finite.
        targets: (N,) int in [0, C).

    Raises:
        DataError: there are no images, or a target is outside the C classes.
        ModelError: logits that are not finite.
    """
    scores = _compute_scores(logits, targets)
    confusion = compute_confusion(targets, scores.predictions, num_classes=logits.shape[1])
    return EpochMetrics(
        loss=float(scores.losses.mean()),
        accuracy=float((scores.predictions == targets).mean()),
        macro_f1=compute_macro_f1(confusion),
    )


class ClassifyScore:
    """Collects the logits of evaluated images; see `mnft.tasks.base.Score`."""

    def __init__(self, ranks: Ranks) -> None:
        self._rows = Rows(ranks)

    def update(self, positions: Sequence[int], outputs: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            positions: B positions of the images in the list of all images.
            outputs: (B, C) float logits.
            targets: (B,) int64.
        """
        self._rows.add(positions, outputs, targets)

    def result(self) -> dict[str, float]:
        """Compute loss, accuracy and macro F1.

        Raises:
            DataError: there are no images.
            ModelError: logits that are not finite.
        """
        collected = self._rows.collect()
        if collected is None:
            return compute_epoch_metrics(np.empty((0, 1)), np.empty(0, np.int64))._asdict()
        _, logits, targets = (column.numpy() for column in collected)
        return compute_epoch_metrics(logits, targets)._asdict()

    def fit_settings(self) -> dict[str, Any]:
        """Nothing: the most probable class needs no threshold."""
        return {}


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits (N, C) into probabilities (N, C) float64 whose rows sum to 1.

    In float64 two float32 logits that differ keep different probabilities, so the argmax stays.
    """
    probabilities = logits.astype(np.float64)
    probabilities -= probabilities.max(axis=1, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def compute_top_k(logits: NDArray[Any], targets: NDArray[Any], *, k: int) -> float:
    """Compute the fraction of images whose target is among the k largest of its logits.

    Among equal logits the lower class index comes first, as in argmax.

    Args:
        logits: (N, C) float, finite.
        targets: (N,) int in [0, C).
        k: how many classes may be named.
    """
    classes = np.arange(logits.shape[1])
    hits = 0
    for rows in _chunks(logits.shape):
        part, target = logits[rows], targets[rows, None]
        own = np.take_along_axis(part, target, axis=1)
        ahead = (part > own) | ((part == own) & (classes < target))
        hits += int((ahead.sum(axis=1) < k).sum())
    return hits / len(targets)


def compute_confusion(
    targets: NDArray[Any], predictions: NDArray[Any], *, num_classes: int
) -> NDArray[Any]:
    """Count the images of class i that were predicted as class j: (C, C) int.

    Args:
        targets: (N,) int in [0, C).
        predictions: (N,) int in [0, C).
        num_classes: C.
    """
    cells = targets.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_macro_f1(confusion: NDArray[Any]) -> float:
    """Compute the mean F1 of the classes that have images.

    Args:
        confusion: (C, C) int, `confusion[i, j]` images of class i predicted as class j.
    """
    return _compute_averages(confusion, "macro").f1


def compute_ece(
    confidences: NDArray[Any], correct: NDArray[Any], *, num_bins: int = ECE_BINS
) -> float:
    """Compute the expected calibration error (Guo et al. 2017, eq. 3).

    Bins are equally wide and right-closed: bin m holds ((m - 1) / M, m / M].

    Args:
        confidences: (N,) float in (0, 1], the probability of the predicted class.
        correct: (N,) bool.
        num_bins: M.
    """
    _, hits, expected = _sum_bins(confidences, correct, num_bins)
    # |B|/n * |acc(B) - conf(B)| is the difference of the sums over n: empty bins need no care.
    return float(np.abs(hits - expected).sum() / len(confidences))


class ReliabilityBin(NamedTuple):
    """The predictions whose confidence lies in one bin; `confidence` is their mean, or 0."""

    num_images: int
    num_correct: int
    confidence: float


def compute_reliability(
    confidences: NDArray[Any], correct: NDArray[Any], *, num_bins: int = ECE_BINS
) -> list[ReliabilityBin]:
    """The bins of `compute_ece`, from the least confident to the most.

    Args:
        confidences: (N,) float in (0, 1], the probability of the predicted class.
        correct: (N,) bool.
        num_bins: M.
    """
    counts, hits, expected = _sum_bins(confidences, correct, num_bins)
    return [
        ReliabilityBin(int(count), int(num_correct), float(total / max(count, 1)))
        for count, num_correct, total in zip(counts, hits, expected, strict=True)
    ]


def _sum_bins(
    confidences: NDArray[Any], correct: NDArray[Any], num_bins: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Count the predictions and hits in each bin, and add up their confidences: each (M,)."""
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.digitize(confidences, inner_edges, right=True)
    counts = np.bincount(bins, minlength=num_bins)
    hits = np.bincount(bins, weights=correct, minlength=num_bins)
    return counts, hits, np.bincount(bins, weights=confidences, minlength=num_bins)


def compute_wilson_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """Compute the 95% score interval of a fraction (Wilson 1927), low and high in [0, 1]."""
    fraction = num_correct / num_images
    z = NormalDist().inv_cdf((1 + INTERVAL_LEVEL) / 2)
    scale = 2 * (num_images + z**2)
    centre = (2 * num_correct + z**2) / scale
    margin = z / scale * math.sqrt(4 * num_correct * (1 - fraction) + z**2)
    # At the borders the two terms are equal; rounding must not leave anything beyond them.
    low = 0.0 if num_correct == 0 else centre - margin
    high = 1.0 if num_correct == num_images else centre + margin
    return low, high


def _compute_scores(logits: NDArray[Any], targets: NDArray[Any]) -> _Scores:
    _check(logits, targets)
    losses, confidences = np.empty(len(logits)), np.empty(len(logits))
    for rows in _chunks(logits.shape):
        part = logits[rows].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        own = np.take_along_axis(part, targets[rows, None], axis=1)[:, 0]
        total = np.exp(part, out=part).sum(axis=1)
        losses[rows] = np.log(total) - own
        confidences[rows] = 1 / total
    return _Scores(losses, logits.argmax(axis=1), confidences)


def _check(logits: NDArray[Any], targets: NDArray[Any]) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape} do not fit targets {targets.shape}")
    num_images, num_classes = logits.shape
    if num_images == 0:
        raise DataError("there are no images to evaluate", hint="choose a split that has images")
    if targets.min() < 0 or targets.max() >= num_classes:
        raise DataError(
            f"the targets range from {targets.min()} to {targets.max()}, "
            f"but the model knows {num_classes} classes, 0 to {num_classes - 1}",
            hint="evaluate on a folder that has the classes of the training",
        )
    bad = num_images - int(np.isfinite(logits).all(axis=1).sum())
    if bad:
        raise ModelError(
            f"the model's output is not finite for {bad} of {num_images} images",
            hint="train again with a lower optim.lr, or run the model in fp32",
        )


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    num_rows = max(1, _CHUNK_ELEMENTS // shape[1])
    for start in range(0, shape[0], num_rows):
        yield slice(start, start + num_rows)


def _compute_averages(confusion: NDArray[Any], average: Literal["macro", "weighted"]) -> Averages:
    support = confusion.sum(axis=1)
    present = support > 0
    weights = support[present] if average == "weighted" else None
    means = [np.average(s[present], weights=weights) for s in _score_classes(confusion)]
    return Averages(*map(float, means))


def _compute_class_metrics(
    confusion: NDArray[Any], class_names: Sequence[str]
) -> list[ClassMetrics]:
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    columns = [column.tolist() for column in (*_score_classes(confusion), support, predicted)]
    return [ClassMetrics(*row) for row in zip(class_names, *columns, strict=True)]


def _score_classes(confusion: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Compute precision, recall and F1 of each class: (C,) float64 each, 0 where it is 0 / 0."""
    hits, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)

    def divide(counts: NDArray[Any], totals: NDArray[Any]) -> NDArray[Any]:
        fractions: NDArray[Any] = np.zeros(len(totals))
        np.divide(counts, totals, out=fractions, where=totals > 0)
        return fractions

    return divide(hits, predicted), divide(hits, support), divide(2 * hits, support + predicted)
