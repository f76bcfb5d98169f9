"""The outputs of a classifier as answers: probable classes or none, agreement of two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.decision.record import UNKNOWN
from mnft.tasks.classify.decision.threshold import answer
from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.classify.metrics import softmax
from mnft.tasks.outputs import Agreement, Outputs, Rate

_MAX_DISAGREEMENTS = 20  # positions of differing images that are kept


class ProbableClasses:
    """The most probable classes of an image; see `mnft.tasks.outputs.Answers`.

    A model that may be silent answers `unknown` in place of the most probable class where its
    probability is below the threshold, or where the image is more likely none of the classes. The
    answer then also has the class that the image looks most like, as `guess`.

    Args:
        class_names: C names, in the order of the logits.
        limit: number of classes to name for an image; fewer if the model knows fewer.
        threshold: least probability with which a class is named, or None.
        other: the output for images of none of the classes, or None.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        limit: int,
        threshold: float | None = None,
        other: int | None = None,
    ) -> None:
        self._class_names = class_names
        self._limit = min(limit, len(class_names) - (other is not None))
        self._threshold = threshold
        self._other = other
        self._may_be_silent = threshold is not None or other is not None

    @property
    def headings(self) -> list[str]:
        """`class_1`, `probability_1`, ..., and `guess` where the model may be silent."""
        ranks = range(1, self._limit + 1)
        named = [f"{name}_{k}" for k in ranks for name in ("class", "probability")]
        return [*named, "guess"] if self._may_be_silent else named

    def as_cells(self, values: NDArray[Any]) -> list[str]:
        """Names and probabilities in turn, the most probable first; the guess.

        Args:
            values: (C,) logits.
        """
        chosen, guess = self._choose(values)
        cells = [cell for name, p in chosen for cell in (name, f"{p:.6f}")]
        return [*cells, guess] if self._may_be_silent else cells

    def as_record(self, values: NDArray[Any] | None) -> dict[str, Any]:
        """The list `predictions`, the most probable class first, and the `guess`.

        Args:
            values: (C,) logits; None gives an empty list.
        """
        chosen, guess = ([], None) if values is None else self._choose(values)
        listed = [{"class": name, "probability": round(p, 6)} for name, p in chosen]
        return {"predictions": listed} | ({"guess": guess} if self._may_be_silent else {})

    def choose_explained(self, values: NDArray[Any]) -> list[int]:
        """The most probable class.

        Args:
            values: (C,) logits.
        """
        return [int(values.argmax())]

    def _choose(self, logits: NDArray[Any]) -> tuple[list[tuple[str, float]], str]:
        """The classes to name with their probabilities, and the most probable class."""
        probabilities = softmax(logits[None])
        _, scores = answer(probabilities, self._other)
        order = (-probabilities[0]).argsort(kind="stable")
        best = order[order != self._other][: self._limit]
        chosen = [(self._class_names[i], float(probabilities[0, i])) for i in best]
        guess, probability = chosen[0]
        if scores[0] < (self._threshold or 0.0):
            chosen[0] = (UNKNOWN, probability)
        return chosen, guess


def compare(
    reference: Outputs,
    other: Outputs,
    *,
    activated: bool = False,
    threshold: float | None = None,
    none_of_these: int | None = None,
) -> Agreement:
    """Compare logits for the same images; see `mnft.tasks.outputs.Compare`.

    Two models give the same answer for an image if they name the same class, or none. The accuracy
    is that of the most probable classes, whether they are named or not.

    Args:
        reference: outputs of the model to compare with.
        other: outputs of the other model; with `activated`, logarithms of the probabilities that
            it gives.
        activated: whether the differences are those of probabilities.
        threshold: least probability with which both models name a class, or None.
        none_of_these: the output for images of none of the classes, or None; such images count in
            the agreement, but not in the accuracy.

    Raises:
        ValueError: the outputs are of different images, or of none.
    """
    if not len(reference.positions) or not np.array_equal(reference.positions, other.positions):
        raise ValueError("the outputs are not of the same images")
    before, after = reference.values.argmax(1), other.values.argmax(1)
    known = np.ones(len(before), dtype=bool)
    if none_of_these is not None:
        known = reference.targets != none_of_these
    ours, theirs = reference.values, other.values
    if activated:
        # Not the softmax of theirs, which would hide probabilities that do not add up to 1.
        ours, theirs = softmax(ours), np.exp(theirs)
    difference = np.abs(ours.astype(np.float64) - theirs)
    ours_named, theirs_named = (
        np.where(answer(softmax(o.values), none_of_these)[1] >= (threshold or 0.0), predicted, -1)
        for o, predicted in ((reference, before), (other, after))
    )
    same = ours_named == theirs_named
    differing = np.flatnonzero(~same)
    return Agreement(
        figure="accuracy",
        title="accuracy",
        num_images=len(before),
        agreement=float(same.mean()),
        before=_rate((before == reference.targets)[known]),
        after=_rate((after == other.targets)[known]),
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
    if not len(correct):
        raise ValueError("no image belongs to a class")
    return Rate(float(correct.mean()), *compute_wilson_interval(int(correct.sum()), len(correct)))
