"""Metrics of a multi-label classifier, as pure functions of logits, targets and thresholds.

Shapes: N images, K labels. Targets are 1, 0 or NaN; a label that is unknown for an image is left
out of every figure. `compute_epoch_metrics` and `compute_evaluation` share the code of the figures
that both compute, so validation during training and evaluation afterwards agree to the last digit.

scikit-learn has these metrics too, and the tests compare with them. It is not used here because
every training would wait for its import (tests/cli/test_startup.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnft.config.multilabel import MultilabelConfig
from mnft.device.ranks.distributed import Ranks
from mnft.device.ranks.rows import Rows
from mnft.errors import DataError, ModelError
from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.multilabel.average_precision import (
    Interval,
    bootstrap,
    compute_average_precisions,
    compute_mean,
)
from mnft.tasks.multilabel.evaluation import Evaluation, LabelMetrics
from mnft.tasks.multilabel.thresholds import as_settings, choose_thresholds, decide


class EpochMetrics(NamedTuple):
    """What a validation within the training reports: loss in nats, the others in [0, 1].

    The F1 figures use thresholds that were chosen on the same images, so they are optimistic; the
    mean average precision needs no threshold.
    """

    loss: float
    map: float
    macro_f1: float
    micro_f1: float


class Counts(NamedTuple):
    """Numbers of images for each label, among those of which it is known; (K,) int each.

    Attributes:
        hits: images that have the label and are decided to have it.
        decided: images that are decided to have it.
        support: images that have it.
        known: all.
    """

    hits: NDArray[Any]
    decided: NDArray[Any]
    support: NDArray[Any]
    known: NDArray[Any]


def compute_evaluation(
    logits: NDArray[Any],
    targets: NDArray[Any],
    labels: Sequence[str],
    thresholds: NDArray[Any],
) -> Evaluation:
    """Evaluate the logits of a whole data set.

    Args:
        logits: (N, K) float, finite.
        targets: (N, K) float: 1, 0 or NaN.
        labels: K names.
        thresholds: (K,) logits from which on an image has a label.

    Raises:
        DataError: there are no images.
        ModelError: logits that are not finite.
    """
    epoch = compute_epoch_metrics(logits, targets, thresholds)
    counts = count_decisions(logits, targets, thresholds)
    precisions = compute_average_precisions(logits, targets)
    interval, intervals = bootstrap(logits, targets)
    right = (decide(logits, thresholds) == (targets == 1)) | np.isnan(targets)
    f1 = compute_f1(counts)
    per_label = [
        LabelMetrics(
            name=name,
            average_precision=None if np.isnan(precisions[k]) else float(precisions[k]),
            average_precision_interval=intervals[k],
            precision=_divide(counts.hits[k], counts.decided[k]),
            precision_interval=_wilson(counts.hits[k], counts.decided[k]),
            recall=_divide(counts.hits[k], counts.support[k]),
            recall_interval=_wilson(counts.hits[k], counts.support[k]),
            f1=float(f1[k]),
            threshold=float(sigmoid(thresholds[k])),
            support=int(counts.support[k]),
            decided=int(counts.decided[k]),
            known=int(counts.known[k]),
        )
        for k, name in enumerate(labels)
    ]
    return Evaluation(
        num_images=len(targets),
        loss=epoch.loss,
        map=epoch.map,
        map_interval=interval,
        labels_in_map=int((~np.isnan(precisions)).sum()),
        macro_f1=epoch.macro_f1,
        micro_f1=epoch.micro_f1,
        exact_match=float(right.all(1).mean()),
        per_label=per_label,
    )


def compute_epoch_metrics(
    logits: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[Any]
) -> EpochMetrics:
    """Compute what each epoch's validation needs, equal to `compute_evaluation` to the last digit.

    Args:
        logits: (N, K) float, finite.
        targets: (N, K) float: 1, 0 or NaN.
        thresholds: (K,) logits from which on an image has a label.

    Raises:
        DataError: there are no images.
        ModelError: logits that are not finite.
    """
    check(logits, targets)
    counts = count_decisions(logits, targets, thresholds)
    return EpochMetrics(
        loss=compute_loss(logits, targets),
        map=compute_mean(compute_average_precisions(logits, targets)),
        macro_f1=compute_macro_f1(counts),
        micro_f1=_divide(2 * counts.hits.sum(), counts.support.sum() + counts.decided.sum()),
    )


class MultilabelScore:
    """Collects the logits of evaluated images; see `mnft.tasks.base.Score`.

    Args:
        ranks: processes that share the images.
        labels: K names.
        config: how thresholds are chosen.
    """

    def __init__(self, ranks: Ranks, *, labels: Sequence[str], config: MultilabelConfig) -> None:
        self._rows = Rows(ranks)
        self._labels = labels
        self._config = config
        self._thresholds: NDArray[Any] = np.zeros(len(labels))
        self._loss = 0.0

    def update(self, positions: Sequence[int], outputs: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            positions: B positions of the images in the list of all images.
            outputs: (B, K) float logits.
            targets: (B, K) float: 1, 0 or NaN.
        """
        self._rows.add(positions, outputs, targets)

    def result(self) -> dict[str, float]:
        """Compute loss, mean average precision, macro and micro F1.

        The thresholds of the F1 figures are chosen on these same images, so they are optimistic.

        Raises:
            DataError: there are no images.
            ModelError: logits that are not finite.
        """
        collected = self._rows.collect()
        if collected is None:
            empty = np.empty((0, len(self._labels)))
            return compute_epoch_metrics(empty, empty, self._thresholds)._asdict()
        _, logits, targets = (column.numpy() for column in collected)
        check(logits, targets)
        if np.isnan(compute_average_precisions(logits, targets)).all():
            raise DataError(
                "no label has both images with it and images without it on val, so no epoch can be "
                "judged",
                hint="take a larger val split, or fill in what is not known",
            )
        self._thresholds = choose_thresholds(logits, targets, self._config)
        figures = compute_epoch_metrics(logits, targets, self._thresholds)._asdict()
        self._loss = figures["loss"]
        return figures

    def fit_settings(self) -> dict[str, Any]:
        """The thresholds that `result` chose."""
        return as_settings(self._thresholds, self._labels)

    def fitted_loss(self) -> float:
        """The loss of `result`: thresholds do not change it."""
        return self._loss


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits of any shape into probabilities, float64."""
    # exp of a negative number never overflows.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    probabilities: NDArray[Any] = np.where(logits >= 0, 1.0, small) / (1 + small)
    return probabilities


def compute_loss(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean binary cross-entropy in nats over the known targets; 0 where there are none.

    Args:
        logits: (N, K) float.
        targets: (N, K) float: 1, 0 or NaN.
    """
    known = ~np.isnan(targets)
    z, present = logits[known].astype(np.float64), targets[known]
    losses = np.maximum(z, 0) - z * present + np.log1p(np.exp(-np.abs(z)))
    return float(losses.mean()) if losses.size else 0.0


def count_decisions(
    logits: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[Any]
) -> Counts:
    """Count decisions and labels.

    Args:
        logits: (N, K) float.
        targets: (N, K) float: 1, 0 or NaN.
        thresholds: (K,) logits from which on an image has a label.
    """
    known, present = ~np.isnan(targets), targets == 1
    decided = decide(logits, thresholds) & known
    columns = ((decided & present), decided, present, known)
    return Counts(*(column.sum(0) for column in columns))


def compute_f1(counts: Counts) -> NDArray[Any]:
    """F1 of each label, (K,) float64; 0 where it is 0 / 0."""
    total = counts.support + counts.decided
    f1: NDArray[Any] = 2 * counts.hits / np.maximum(total, 1)
    return f1


def compute_macro_f1(counts: Counts) -> float:
    """The mean F1 of the labels that have images; 0 where no label has any."""
    present = counts.support > 0
    return float(compute_f1(counts)[present].mean()) if present.any() else 0.0


def check(logits: NDArray[Any], targets: NDArray[Any]) -> None:
    """Refuse what no figure can be computed of.

    Args:
        logits: (N, K) float.
        targets: (N, K) float.

    Raises:
        DataError: there are no images.
        ModelError: logits that are not finite.
    """
    if logits.ndim != 2 or targets.shape != logits.shape:
        raise ValueError(f"logits {logits.shape} do not fit targets {targets.shape}")
    if not len(logits):
        raise DataError("there are no images to evaluate", hint="choose a split that has images")
    if bad := int((~np.isfinite(logits).all(1)).sum()):
        raise ModelError(
            f"the model's output is not finite for {bad} of {len(logits)} images",
            hint="train again with a lower optim.lr, or run the model in fp32",
        )


def _divide(count: Any, total: Any) -> float:
    return float(count) / float(total) if total else 0.0


def _wilson(count: Any, total: Any) -> Interval | None:
    return Interval(*compute_wilson_interval(int(count), int(total))) if total else None
