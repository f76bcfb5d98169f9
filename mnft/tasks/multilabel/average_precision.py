"""Average precision of each label, with intervals by bootstrap over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000
_LEAST_RESAMPLES = 200
# Cells of all resamples together, beyond which fewer are drawn: about 15 seconds.
_MOST_CELLS = 2_000_000_000
_CHUNK_ELEMENTS = 1 << 21
_SEED = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% interval; both ends in [0, 1]."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The known images of one label by descending score, as far as average precision needs it.

    Attributes:
        rows: (M,) int, positions of the images, the highest score first.
        ends: (G,) int, for each score that positives have, the number of images with that score or
            a higher one; ascending.
        positives: (P,) int, positions of the positives in the same order.
        positive_starts: (G,) int, where the positives of each such score begin in `positives`.
    """

    rows: NDArray[Any]
    ends: NDArray[Any]
    positives: NDArray[Any]
    positive_starts: NDArray[Any]


def rank(scores: NDArray[Any], targets: NDArray[Any]) -> Ranking | None:
    """Sort the known images of one label; None if they are not both positive and negative.

    Args:
        scores: (N,) float, such as logits.
        targets: (N,) float: 1, 0 or NaN.
    """
    known = np.flatnonzero(~np.isnan(targets))
    order = known[np.argsort(-scores[known], kind="stable")]
    present = targets[order] == 1
    if present.all() or not present.any():
        return None
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    ends = np.flatnonzero(last) + 1
    # The first of the ends that is behind each positive, as images of one score are one step.
    own = ends[np.searchsorted(ends, np.flatnonzero(present), side="right")]
    stops, starts = np.unique(own, return_index=True)
    return Ranking(order, stops, order[present], starts)


def compute_average_precision(ranking: Ranking, weights: NDArray[Any]) -> NDArray[Any]:
    """Sum of (R_n - R_(n-1)) P_n over the distinct scores, where R_n and P_n are recall and
    precision at the n-th: scikit-learn's `average_precision_score`, without interpolation.

    Args:
        ranking: the images by their scores.
        weights: (N, B) float, how often each image counts in each of B samples.

    Returns:
        (B,) float64; NaN for a sample without positives.
    """
    starts = np.concatenate([[0], ranking.ends[:-1]])
    ranked = weights[ranking.rows[: ranking.ends[-1]]]
    gained = np.add.reduceat(weights[ranking.positives], ranking.positive_starts, axis=0)
    counted = np.add.reduceat(ranked, starts, axis=0).cumsum(0, dtype=np.float64)
    hits = gained.cumsum(0, dtype=np.float64)
    precision = np.divide(hits, counted, out=np.zeros_like(hits), where=counted > 0)
    with np.errstate(invalid="ignore"):
        average: NDArray[Any] = (gained * precision).sum(0) / hits[-1]
    return average


def compute_average_precisions(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """Average precision of each label.

    Args:
        scores: (N, K) float.
        targets: (N, K) float: 1, 0 or NaN.

    Returns:
        (K,) float64; NaN for a label without positives or without negatives.
    """
    ones = np.ones((len(scores), 1))
    rankings = [rank(s, t) for s, t in zip(scores.T, targets.T, strict=True)]
    values = [np.nan if r is None else compute_average_precision(r, ones)[0] for r in rankings]
    return np.array(values, dtype=np.float64)


def compute_mean(precisions: NDArray[Any]) -> float:
    """The mean over the labels that have an average precision; 0 where none has."""
    valid = precisions[~np.isnan(precisions)]
    return float(valid.mean()) if len(valid) else 0.0


def bootstrap(
    scores: NDArray[Any], targets: NDArray[Any]
) -> tuple[Interval, list[Interval | None]]:
    """95% percentile intervals over resampled images (Efron 1979, "Bootstrap methods", section 2).

    An image is drawn with all its labels, which depend on each other. 1,000 resamples are drawn,
    fewer if there are very many images and labels; the seed is fixed. In a resample that has none
    of its positives a label does not count.

    Args:
        scores: (N, K) float.
        targets: (N, K) float: 1, 0 or NaN.

    Returns:
        The interval of the mean average precision, and that of each label; None for a label without
        average precision.
    """
    count, num_labels = scores.shape
    rankings = [rank(s, t) for s, t in zip(scores.T, targets.T, strict=True)]
    affordable = _MOST_CELLS // max(1, count * num_labels)
    resamples = min(_RESAMPLES, max(_LEAST_RESAMPLES, affordable))
    at_once = max(1, min(128, _CHUNK_ELEMENTS // count))
    generator = np.random.default_rng(_SEED)
    drawn = np.full((resamples, num_labels), np.nan)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = np.empty((count, size), dtype=np.float32)
        for column in range(size):
            chosen = generator.integers(0, count, count)
            weights[:, column] = np.bincount(chosen, minlength=count)
        for label, ranking in enumerate(rankings):
            if ranking is not None:
                values = compute_average_precision(ranking, weights)
                drawn[start : start + size, label] = values
    own = compute_average_precisions(scores, targets)
    valid = ~np.isnan(drawn)
    some = valid.any(1)
    means = np.where(valid, drawn, 0.0).sum(1)[some] / valid.sum(1)[some]
    per_label = [
        None if np.isnan(value) else _span(drawn[valid[:, label], label], float(value))
        for label, value in enumerate(own)
    ]
    return _span(means, compute_mean(own)), per_label


def _span(drawn: NDArray[Any], value: float) -> Interval:
    """The middle 95% of what was drawn, widened to hold the value itself."""
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
    return Interval(min(float(low), value), max(float(high), value))
