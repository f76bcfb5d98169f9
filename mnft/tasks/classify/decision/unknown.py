"""Images of none of the classes: how many of them a model takes for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.decision.threshold import answer
from mnft.tasks.classify.intervals import INTERVAL_LEVEL, Interval, compute_wilson_interval

KEPT_LEVEL = 0.95  # fraction of the known images at which models are usually compared


class UnknownRow(NamedTuple):
    """One image of none of the classes: its path, and the class that it is most likely taken for.

    `passes` says whether the model names that class.
    """

    path: str
    name: str
    probability: float
    passes: bool


@dataclass(frozen=True, slots=True)
class UnknownFigures:
    """How a model answers images of none of its classes.

    Attributes:
        num_images: number of these images.
        accepted: fraction of them that get the name of a class.
        accepted_interval: 95% Wilson interval of that.
        auroc: probability that an image of the classes has a higher score than one of these (equal
            scores count half): 1 parts them, 0.5 is chance.
        accepted_at_95: fraction of them that would get a name with the threshold that 95% of the
            images of the classes pass.
    """

    num_images: int
    accepted: float
    accepted_interval: Interval
    auroc: float
    accepted_at_95: float

    def as_record(self) -> dict[str, Any]:
        """The figures for metrics.json."""
        low, high = self.accepted_interval
        interval = {"low": low, "high": high, "level": INTERVAL_LEVEL, "method": "wilson"}
        return asdict(self) | {"accepted_interval": interval}

    def describe(self) -> str:
        """The figures for people."""
        low, high = self.accepted_interval
        return (
            f"{self.accepted:.1%} of {self.num_images:,} images are taken for a class (95% Wilson "
            f"interval {low:.1%} to {high:.1%}); AUROC {self.auroc:.3f}; {self.accepted_at_95:.1%} "
            "with a threshold that 95% of the known images pass"
        )


def judge_unknown(
    known: NDArray[Any], unknown: NDArray[Any], threshold: float | None
) -> UnknownFigures:
    """Compare the scores of images of the classes with those of other images.

    Args:
        known: (N,) float, scores from `threshold.answer` of images of the classes.
        unknown: (M,) float, the same of images of none of them.
        threshold: least score with which a class is named, or None.
    """
    accepted = int((unknown >= (threshold or 0.0)).sum())
    # The largest score that 95% of the known images reach.
    place = int(np.floor(len(known) * (1 - KEPT_LEVEL) + 1e-9))
    at_95 = np.sort(known)[place]
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left")
    equal = np.searchsorted(ordered, known, side="right") - below
    return UnknownFigures(
        num_images=len(unknown),
        accepted=accepted / len(unknown),
        accepted_interval=compute_wilson_interval(accepted, len(unknown)),
        auroc=float((below + equal / 2).mean() / len(unknown)),
        accepted_at_95=float((unknown >= max(at_95, 0.0)).mean()),
    )


def list_unknown(
    paths: Sequence[str],
    probabilities: NDArray[Any],
    class_names: Sequence[str],
    threshold: float | None,
    other: int | None,
) -> tuple[UnknownRow, ...]:
    """The answers for images of none of the classes, the most confident one first.

    Args:
        paths: M paths.
        probabilities: (M, K) float.
        class_names: K names.
        threshold: least probability with which a class is named, or None.
        other: the output for images of none of the classes, or None.
    """
    _, scores = answer(probabilities, other)
    # The class that an image looks most like, also where the model says that it is none.
    likely = probabilities if other is None else np.delete(probabilities, other, axis=1)
    names = [name for place, name in enumerate(class_names) if place != other]
    best, most = likely.argmax(axis=1), likely.max(axis=1)
    return tuple(
        UnknownRow(paths[i], names[best[i]], float(most[i]), bool(scores[i] >= (threshold or 0.0)))
        for i in np.lexsort((-most, -scores)).tolist()
    )
