"""The probability from which on a class is named: chosen on the val split, and what it costs.

The method is selective classification by the softmax response (Geifman and El-Yaniv, 2017,
"Selective classification for deep neural networks"): an answer is kept if its probability is at
least the threshold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.intervals import Interval, compute_wilson_interval

# An accuracy of fewer answers says nothing: 20 of 20 right can be one wrong in six.
MIN_KEPT = 20


class Kept(NamedTuple):
    """What a threshold does to a set of images of the classes.

    Attributes:
        threshold: least probability of an answer that is kept.
        num_images: number of images.
        num_kept: number of images whose class is named.
        num_correct: number of these whose class is right.
    """

    threshold: float
    num_images: int
    num_kept: int
    num_correct: int

    @property
    def share(self) -> float:
        """Fraction of the images whose class is named."""
        return self.num_kept / self.num_images

    @property
    def accuracy(self) -> float | None:
        """Accuracy among these; None where there are none."""
        return self.num_correct / self.num_kept if self.num_kept else None

    @property
    def interval(self) -> Interval | None:
        """95% Wilson interval of this accuracy."""
        return compute_wilson_interval(self.num_correct, self.num_kept) if self.num_kept else None

    def as_record(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "threshold": self.threshold,
            "images": self.num_images,
            "kept": self.share,
            "kept_interval": list(compute_wilson_interval(self.num_kept, self.num_images)),
            "accuracy": self.accuracy,
            "interval": None if self.interval is None else list(self.interval),
        }


def answer(probabilities: NDArray[Any], other: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """The most probable output of each image, and how probable a class is that may be named.

    Args:
        probabilities: (N, K) float.
        other: the output that stands for images of none of the classes, or None.

    Returns:
        (N,) int, and (N,) float: its probability, or -1 where it is `other`, which no threshold
        lets pass.
    """
    predicted = probabilities.argmax(axis=1)
    scores = np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0].astype(np.float64)
    return predicted, scores if other is None else np.where(predicted == other, -1.0, scores)


def count_kept(scores: NDArray[Any], correct: NDArray[Any], threshold: float) -> Kept:
    """Apply a threshold.

    Args:
        scores: (N,) float, from `answer`.
        correct: (N,) bool, whether the most probable class is right.
        threshold: least score that is kept, at least 0.
    """
    kept = scores >= threshold
    return Kept(threshold, len(scores), int(kept.sum()), int((kept & correct).sum()))


def compute_curve(
    scores: NDArray[Any], correct: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The risk-coverage curve: what each threshold that parts the images keeps.

    Args:
        scores: (N,) float, from `answer`.
        correct: (N,) bool.

    Returns:
        The scores that occur, descending, (M,); how many images have at least that, and how many of
        these are right, (M,) int each. Answers that no threshold lets pass are not among them.
    """
    able = scores >= 0
    scores, correct = scores[able], correct[able]
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], correct[order].cumsum()
    # After the last image of each score: a threshold cannot part equal ones.
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else order
    return scores[ends], ends + 1, hits[ends]


def choose_threshold(
    scores: NDArray[Any], correct: NDArray[Any], target: float
) -> tuple[Kept | None, Kept | None]:
    """Choose the lowest threshold whose kept answers have an accuracy of at least `target`.

    It lies midway between two neighbouring scores, so that rounding in an exported file does not
    move an image across it; 0 where all answers are kept. At least MIN_KEPT answers must be kept.

    Args:
        scores: (N,) float, from `answer`.
        correct: (N,) bool, whether the most probable class is right.
        target: accuracy from 0 to 1.

    Returns:
        What the chosen threshold keeps, or None where no threshold reaches the target; and what the
        threshold with the highest accuracy keeps, or None where there are too few images.
    """
    levels, kept, hits = compute_curve(scores, correct)
    enough = np.flatnonzero(kept >= MIN_KEPT)
    if not len(enough):
        return None, None
    accuracy = hits / kept

    def cut(place: int) -> Kept:
        below = float(levels[place + 1]) if place + 1 < len(levels) else 0.0
        whole = place + 1 == len(levels)
        threshold = 0.0 if whole else _round(float(levels[place]), below)
        return Kept(threshold, len(scores), int(kept[place]), int(hits[place]))

    # Of equal accuracies the one that keeps most; the rounding of a fraction must not matter.
    best = cut(int(enough[accuracy[enough] >= accuracy[enough].max() - 1e-12][-1]))
    reached = enough[accuracy[enough] >= target - 1e-12]
    return (cut(int(reached[-1])) if len(reached) else None), best


def _round(above: float, below: float) -> float:
    """The shortest decimal in the middle half between two probabilities."""
    middle, room = (above + below) / 2, (above - below) / 4
    for digits in range(1, 16):
        if abs((value := round(middle, digits)) - middle) <= room:
            return value
    return above
