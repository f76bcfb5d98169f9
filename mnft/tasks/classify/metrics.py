"""Metrics of a classifier, as pure functions of logits, targets and counts.

Shapes: N images, C classes. `compute_epoch_metrics` and `compute_evaluation` share the code of the
figures that both compute, so validation during training and evaluation afterwards agree to the last
digit.

scikit-learn and SciPy have these metrics too, and the tests compare with them. They are not used
here because every training would wait for their import (tests/cli/test_startup.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnft.errors import DataError, ModelError
from mnft.tasks.classify.decision.calibration import Calibration, compute_calibration
from mnft.tasks.classify.decision.record import Decision
from mnft.tasks.classify.decision.threshold import answer, count_kept
from mnft.tasks.classify.decision.unknown import (
    UnknownFigures,
    UnknownRow,
    judge_unknown,
    list_unknown,
)
from mnft.tasks.classify.evaluation import Averages, ClassMetrics, Evaluation
from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.outputs import UnknownImages

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
    """One value an image, each (N,): cross-entropy, squared distance of the probabilities from the
    truth, predicted class, probability of that class.
    """

    losses: NDArray[Any]
    briers: NDArray[Any]
    predictions: NDArray[Any]
    confidences: NDArray[Any]


def compute_evaluation(
    logits: NDArray[Any],
    targets: NDArray[Any],
    class_names: Sequence[str],
    *,
    decision: Decision | None = None,
    other: int | None = None,
    unknown: UnknownImages | None = None,
) -> Evaluation:
    """Evaluate the logits of a whole data set.

    The predicted class is the first of the largest logits. The macro averages are taken over the
    classes that have images in `targets`, so that classes which a subset lacks do not drag them
    down; the weighted averages weight each class by its images.

    Args:
        logits: (N, C) float, finite; divided by the temperature of `decision` already.
        targets: (N,) int in [0, C).
        class_names: C names, in the order of the logits.
        decision: the temperature and the threshold of the model.
        other: the output for images of none of the classes, or None.
        unknown: logits for a folder of such images.

    Raises:
        DataError: there are no images of the classes, or a target is outside the C classes.
        ModelError: logits that are not finite.
    """
    if len(class_names) != logits.shape[1]:
        raise ValueError(f"{len(class_names)} class names for {logits.shape[1]} logits")
    decision = decision or Decision()
    scores = _compute_scores(logits, targets)
    known = _find_known(targets, other)
    correct = scores.predictions == targets
    hits = int(correct[known].sum())
    confusion = compute_confusion(targets, scores.predictions, num_classes=len(class_names))
    of_classes = _without_other(confusion, other)
    per_class = _compute_class_metrics(of_classes, class_names)
    calibration, uncalibrated = _calibrate(scores, targets), None
    if decision.temperature != 1:
        uncalibrated = _calibrate(_compute_scores(logits * decision.temperature, targets), targets)
    _, confidences = answer(softmax(logits), other)
    kept = None
    if decision.threshold is not None:
        kept = count_kept(confidences[known], correct[known], decision.threshold)
    of_other = None
    if not known.all():
        of_other = judge_unknown(confidences[known], confidences[~known], decision.threshold)
    of_unknown: UnknownFigures | None = None
    rows: tuple[UnknownRow, ...] = ()
    if unknown is not None:
        likely = softmax(unknown.outputs.values)
        of_unknown = judge_unknown(confidences[known], answer(likely, other)[1], decision.threshold)
        rows = list_unknown(unknown.paths, likely, class_names, decision.threshold, other)
    return Evaluation(
        num_images=len(targets),
        num_known=int(known.sum()),
        loss=float(scores.losses.mean()),
        accuracy=hits / int(known.sum()),
        accuracy_interval=compute_wilson_interval(hits, int(known.sum())),
        top5=compute_top_k(logits[known], targets[known], k=TOP_K)
        if len(class_names) - (other is not None) > TOP_K
        else None,
        macro=_compute_averages(of_classes, "macro"),
        weighted=_compute_averages(of_classes, "weighted"),
        ece=calibration.ece,
        temperature=decision.temperature,
        calibration=calibration,
        uncalibrated=uncalibrated,
        decision=kept,
        on_val=decision.val,
        other=of_other,
        unknown=of_unknown,
        unknown_rows=rows,
        per_class=[m for place, m in enumerate(per_class) if place != other],
        confusion=confusion.tolist(),
    )


def _calibrate(scores: _Scores, targets: NDArray[Any]) -> Calibration:
    correct = scores.predictions == targets
    return compute_calibration(scores.losses, scores.briers, scores.confidences, correct)


def _find_known(targets: NDArray[Any], other: int | None) -> NDArray[Any]:
    """Which images belong to a class, (N,) bool.

    Raises:
        DataError: none does.
    """
    known = np.ones(len(targets), dtype=bool) if other is None else targets != other
    if not known.any():
        raise DataError("there are no images of the classes to evaluate")
    return known


def _without_other(confusion: NDArray[Any], other: int | None) -> NDArray[Any]:
    """The confusion of the images that belong to a class."""
    if other is None:
        return confusion
    known = confusion.copy()
    known[other] = 0
    return known


def compute_epoch_metrics(
    logits: NDArray[Any], targets: NDArray[Any], *, other: int | None = None
) -> EpochMetrics:
    """Compute what each epoch's validation needs, equal to `compute_evaluation` to the last digit.

    Args:
        logits: (N, C) float, unnormalised and finite.
        targets: (N,) int in [0, C).
        other: the output for images of none of the classes, or None.

    Raises:
        DataError: there are no images of the classes, or a target is outside the C classes.
        ModelError: logits that are not finite.
    """
    scores = _compute_scores(logits, targets)
    known = _find_known(targets, other)
    confusion = compute_confusion(targets, scores.predictions, num_classes=logits.shape[1])
    return EpochMetrics(
        loss=float(scores.losses.mean()),
        accuracy=int((scores.predictions == targets)[known].sum()) / int(known.sum()),
        macro_f1=compute_macro_f1(_without_other(confusion, other)),
    )


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


def _compute_scores(logits: NDArray[Any], targets: NDArray[Any]) -> _Scores:
    _check(logits, targets)
    losses, briers, confidences = (np.empty(len(logits)) for _ in range(3))
    for rows in _chunks(logits.shape):
        part = logits[rows].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        own = np.take_along_axis(part, targets[rows, None], axis=1)[:, 0]
        total = np.exp(part, out=part).sum(axis=1)
        losses[rows] = np.log(total) - own
        confidences[rows] = 1 / total
        # The right class adds (1 - p)^2 where the others add p^2.
        briers[rows] = np.square(part).sum(axis=1) / total**2 + 1 - 2 * np.exp(own) / total
    return _Scores(losses, briers, logits.argmax(axis=1), confidences)


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
