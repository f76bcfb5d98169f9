"""The outputs of a multi-label classifier as answers, and how far two models agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.multilabel.average_precision import (
    bootstrap,
    compute_average_precisions,
    compute_mean,
)
from mnft.tasks.multilabel.labels import SEPARATOR
from mnft.tasks.multilabel.metrics import sigmoid
from mnft.tasks.multilabel.thresholds import decide
from mnft.tasks.outputs import Agreement, Outputs, Rate

_MAX_DISAGREEMENTS = 20  # positions of differing images that are kept


class DecidedLabels:
    """The labels that an image has, and the probability of each; see `mnft.tasks.outputs.Answers`.

    All labels are named: which of them an image has is decided by their thresholds, not by a number
    of labels that is wanted.

    Args:
        labels: K names, in the order of the logits.
        thresholds: (K,) logits from which on an image has a label.
    """

    def __init__(self, labels: Sequence[str], thresholds: NDArray[Any]) -> None:
        self._labels = labels
        self._thresholds = thresholds

    @property
    def headings(self) -> list[str]:
        """`labels`, and `p_<label>` for each label."""
        return ["labels", *(f"p_{name}" for name in self._labels)]

    def as_cells(self, values: NDArray[Any]) -> list[str]:
        """The names of the labels that the image has, joined by ";", and all probabilities.

        Args:
            values: (K,) logits.
        """
        return [SEPARATOR.join(self._decide(values)), *(f"{p:.6f}" for p in sigmoid(values))]

    def as_record(self, values: NDArray[Any] | None) -> dict[str, Any]:
        """The list `labels`, and the mapping `probabilities`; both empty if there are no logits.

        Args:
            values: (K,) logits, or None.
        """
        if values is None:
            return {"labels": [], "probabilities": {}}
        shown = [round(p, 6) for p in sigmoid(values).tolist()]
        probabilities = dict(zip(self._labels, shown, strict=True))
        return {"labels": self._decide(values), "probabilities": probabilities}

    def choose_explained(self, values: NDArray[Any]) -> list[int]:
        """The labels that the image has, the most probable first; else the most probable one.

        Args:
            values: (K,) logits.
        """
        decided = decide(values[None], self._thresholds)[0]
        order = [int(k) for k in (-values).argsort(kind="stable")]
        return [k for k in order if decided[k]] or order[:1]

    def _decide(self, logits: NDArray[Any]) -> list[str]:
        decided = decide(logits[None], self._thresholds)[0]
        return [name for name, has in zip(self._labels, decided, strict=True) if has]


def compare(
    reference: Outputs, other: Outputs, *, activated: bool = False, thresholds: NDArray[Any]
) -> Agreement:
    """Compare logits for the same images; see `mnft.tasks.outputs.Compare`.

    Two models give the same answer for an image if they decide the same of every label.

    Args:
        reference: outputs of the model to compare with.
        other: outputs of the other model.
        activated: whether the differences are those of probabilities.
        thresholds: (K,) logits from which on an image has a label, for both models.

    Raises:
        ValueError: the outputs are of different images, or of none.
    """
    if not len(reference.positions) or not np.array_equal(reference.positions, other.positions):
        raise ValueError("the outputs are not of the same images")
    same = (decide(reference.values, thresholds) == decide(other.values, thresholds)).all(1)
    ours, theirs = reference.values, other.values
    if activated:
        ours, theirs = sigmoid(ours), sigmoid(theirs)
    difference = np.abs(ours.astype(np.float64) - theirs)
    return Agreement(
        figure="map",
        title="mAP",
        num_images=len(same),
        agreement=float(same.mean()),
        before=_rate(reference),
        after=_rate(other),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        disagreements=tuple(
            int(reference.positions[i]) for i in np.flatnonzero(~same)[:_MAX_DISAGREEMENTS]
        ),
        of="probabilities" if activated else "logits",
    )


def rate_one(logits: NDArray[Any], target: Any, *, thresholds: NDArray[Any]) -> float:
    """Label ranking average precision of one image (Schapire and Singer, 2000, "BoosTexter").

    For each label that the image has, the fraction of the labels ranked at or above it that it has
    too; the mean of these. An image that is known to have all of its known labels, or none, has
    nothing to rank: it gets 1.0 if all are decided right, else 0.0.

    Args:
        logits: (1, K).
        target: (K,) float: 1, 0 or NaN.
        thresholds: (K,) logits from which on an image has a label.
    """
    targets = np.asarray(target, dtype=np.float64)
    known = ~np.isnan(targets)
    scores, present = logits[0][known], targets[known] == 1
    if present.all() or not present.any():
        return float((decide(logits, thresholds)[0][known] == present).all())
    ahead = scores[None] >= scores[present][:, None]
    return float((ahead[:, present].sum(1) / ahead.sum(1)).mean())


def _rate(outputs: Outputs) -> Rate:
    interval, _ = bootstrap(outputs.values, outputs.targets)
    value = compute_mean(compute_average_precisions(outputs.values, outputs.targets))
    return Rate(value, interval.low, interval.high)
