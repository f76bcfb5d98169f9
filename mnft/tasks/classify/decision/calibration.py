"""Whether probabilities are right: the temperature that makes them so, and how far off they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.intervals import Interval

ECE_BINS = 15
_FOLDS = 5
_MIN_IMAGES = 20
_RANGE = (0.05, 20.0)  # of temperatures; beyond it a model is not badly calibrated but broken
# One number needs few images: with many classes only so many cells are read, evenly over the rows.
_MOST_CELLS = 1 << 22
_RESAMPLES, _LEAST_RESAMPLES = 1000, 200
_MOST_DRAWS = 20_000_000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the probabilities for a set of images are off; smaller is better in all three.

    Attributes:
        nll: negative log-likelihood of the right class in nats, mean over the images.
        brier: squared distance of the probabilities from the truth, summed over the classes, mean
            over the images (Brier 1950, eq. 2): from 0 to 2.
        ece: expected calibration error with ECE_BINS bins, from 0 to 1.
        ece_interval: 95% bootstrap interval of that over the images. The error is an average of
            absolute values, so it is too large where bins have few images, by about as much as the
            mean over the resamples exceeds it; the percentiles are moved down by that.
    """

    nll: float
    brier: float
    ece: float
    ece_interval: Interval


class ReliabilityBin(NamedTuple):
    """The predictions whose confidence lies in one bin; `confidence` is their mean, or 0."""

    num_images: int
    num_correct: int
    confidence: float


def fit_temperature(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """Fit what to divide logits by (Guo et al. 2017, section 4.2); 1 where nothing is gained.

    The temperature with the least negative log-likelihood is taken, if one that was fitted to four
    fifths of the images lowers it on the other fifth, summed over the five fifths. Where all images
    are right, that likelihood only grows as the temperature falls. So the right class has a target
    of (N + 1) / (N + 2) instead of 1, as in Platt (1999), "Probabilistic outputs for support vector
    machines", section 2.2: as if one image in N + 2 were wrong.

    Args:
        logits: (N, K) float, finite.
        targets: (N,) int in [0, K).
    """
    step = -(-logits.size // _MOST_CELLS) if logits.size else 1
    logits, targets = logits[::step].astype(np.float64), targets[::step]
    if len(logits) < _MIN_IMAGES or logits.shape[1] < 2:
        return 1.0
    # Images lie in the order of their paths, and so of their classes: each fold has all of them.
    folds = np.arange(len(logits)) % _FOLDS
    before = after = 0.0
    for fold in range(_FOLDS):
        inside = folds == fold
        fitted = _minimise(logits[~inside], targets[~inside])
        before += float(compute_losses(logits[inside], targets[inside]).sum())
        after += float(compute_losses(logits[inside] / fitted, targets[inside]).sum())
    return round(_minimise(logits, targets), 6) if after < before else 1.0


def _minimise(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The temperature with the least smoothed negative log-likelihood, by Newton's method.

    In the inverse temperature the function is convex, so a bracket that holds its minimum takes
    over where a step of Newton's would leave it.
    """
    count, num_outputs = logits.shape
    right = (count + 1) / (count + 2)
    rest = (1 - right) / (num_outputs - 1)
    own = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    aim = float(((right - rest) * own + rest * logits.sum(1)).mean())
    low, high = 1 / _RANGE[1], 1 / _RANGE[0]
    inverse = 1.0
    for _ in range(50):
        weights = np.exp(inverse * (logits - logits.max(1, keepdims=True)))
        weights /= weights.sum(1, keepdims=True)
        means = (weights * logits).sum(1)
        slope = float(means.mean()) - aim
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        curvature = float(((weights * logits**2).sum(1) - means**2).mean())
        following = inverse - slope / curvature if curvature > 0 else low
        if not low < following < high:
            following = float(np.sqrt(low * high))
        if abs(following - inverse) <= 1e-8 * inverse:
            break
        inverse = following
    return 1 / following


def compute_losses(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """Cross-entropy of each image in nats, (N,) float64.

    Args:
        logits: (N, K) float.
        targets: (N,) int in [0, K).
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, targets[:, None], axis=1)[:, 0]
    losses: NDArray[Any] = np.log(np.exp(shifted).sum(axis=1)) - own
    return losses


def compute_calibration(
    losses: NDArray[Any], briers: NDArray[Any], confidences: NDArray[Any], correct: NDArray[Any]
) -> Calibration:
    """Compute how far probabilities are off.

    Args:
        losses: (N,) float, cross-entropy of each image.
        briers: (N,) float, squared distance of each image's probabilities from the truth.
        confidences: (N,) float in (0, 1], the probability of the predicted class.
        correct: (N,) bool.
    """
    return Calibration(
        nll=float(losses.mean()),
        brier=float(briers.mean()),
        ece=compute_ece(confidences, correct),
        ece_interval=_bootstrap_ece(confidences, correct),
    )


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
    bins = _find_bins(confidences, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    hits = np.bincount(bins, weights=correct, minlength=num_bins)
    return counts, hits, np.bincount(bins, weights=confidences, minlength=num_bins)


def _find_bins(confidences: NDArray[Any], num_bins: int) -> NDArray[Any]:
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins: NDArray[Any] = np.digitize(confidences, inner_edges, right=True)
    return bins


def _bootstrap_ece(confidences: NDArray[Any], correct: NDArray[Any]) -> Interval:
    """The 2.5% and 97.5% percentiles of the error over resamples, less the resampling's bias."""
    count = len(confidences)
    generator = np.random.default_rng(_SEED)
    # What each image adds to its bin's difference of hits and expected hits.
    bins, gaps = _find_bins(confidences, ECE_BINS), correct - confidences
    resamples = min(_RESAMPLES, max(_LEAST_RESAMPLES, _MOST_DRAWS // count))
    errors = []
    for _ in range(resamples):
        drawn = generator.integers(0, count, count)
        sums = np.bincount(bins[drawn], weights=gaps[drawn], minlength=ECE_BINS)
        errors.append(np.abs(sums).sum() / count)
    bias = float(np.mean(errors)) - compute_ece(confidences, correct)
    low, high = np.clip(np.quantile(errors, [0.025, 0.975]) - bias, 0, 1)
    return Interval(float(low), float(high))
