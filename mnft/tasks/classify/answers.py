"""The outputs of a classifier as answers: probable classes, and how far two models agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.metrics import compute_wilson_interval, softmax
from mnft.tasks.outputs import Agreement, Outputs, Rate

_MAX_DISAGREEMENTS = 20  # positions of differing images that are kept


class ProbableClasses:
    """The most probable classes of an image; see `mnft.tasks.outputs.Answers`.

    Args:
        class_names: C names, in the order of the logits.
        limit: number of classes to name for an image; fewer if the model knows fewer.
    """

    def __init__(self, class_names: Sequence[str], limit: int) -> None:
        self._class_names = class_names
        self._limit = min(limit, len(class_names))

    @property
    def headings(self) -> list[str]:
        """`class_1`, `probability_1`, ..."""
        ranks = range(1, self._limit + 1)
        return [f"{name}_{k}" for k in ranks for name in ("class", "probability")]

    def as_cells(self, values: NDArray[Any]) -> list[str]:
        """Names and probabilities in turn, the most probable first.

        Args:
            values: (C,) logits.
        """
        return [cell for name, p in self._choose(values) for cell in (name, f"{p:.6f}")]

    def as_record(self, values: NDArray[Any] | None) -> dict[str, Any]:
        """The list `predictions`, the most probable class first; empty if there are no logits.

        Args:
            values: (C,) logits, or None.
        """
        chosen = [] if values is None else self._choose(values)
        return {"predictions": [{"class": name, "probability": round(p, 6)} for name, p in chosen]}

    def choose_explained(self, values: NDArray[Any]) -> list[int]:
        """The most probable class.

        Args:
            values: (C,) logits.
        """
        return [int(values.argmax())]

    def _choose(self, logits: NDArray[Any]) -> list[tuple[str, float]]:
        probabilities = softmax(logits[None])[0]
        best = (-probabilities).argsort(kind="stable")[: self._limit]
        return [(self._class_names[label], float(probabilities[label])) for label in best]


def compare(reference: Outputs, other: Outputs, *, activated: bool = False) -> Agreement:
    """Compare logits for the same images; see `mnft.tasks.outputs.Compare`.

    Args:
        reference: outputs of the model to compare with.
        other: outputs of the other model; with `activated`, logarithms of the probabilities that
            it gives.
        activated: whether the differences are those of probabilities.

    Raises:
        ValueError: the outputs are of different images, or of none.
    """
    if not len(reference.positions) or not np.array_equal(reference.positions, other.positions):
        raise ValueError("the outputs are not of the same images")
    before, after = reference.values.argmax(1), other.values.argmax(1)
    ours, theirs = reference.values, other.values
    if activated:
        # Not the softmax of theirs, which would hide probabilities that do not add up to 1.
        ours, theirs = softmax(ours), np.exp(theirs)
    difference = np.abs(ours.astype(np.float64) - theirs)
    differing = np.flatnonzero(before != after)
    return Agreement(
        figure="accuracy",
        title="accuracy",
        num_images=len(before),
        agreement=float((before == after).mean()),
        before=_rate(before == reference.targets),
        after=_rate(after == other.targets),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        disagreements=tuple(int(reference.positions[i]) for i in differing[:_MAX_DISAGREEMENTS]),
        of="probabilities" if activated else "logits",
    )


def rate_one(logits: NDArray[Any], target: int) -> float:
    """1.0 if the class of an image is right, else 0.0.

    Args:
        logits: (1, C).
        target: the right class.
    """
    return float(logits.argmax() == target)


def _rate(correct: NDArray[Any]) -> Rate:
    return Rate(float(correct.mean()), *compute_wilson_interval(int(correct.sum()), len(correct)))
