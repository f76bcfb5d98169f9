"""One threshold a label: chosen on evaluated images, kept with the model, applied to logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.config.multilabel import MultilabelConfig
from mnft.errors import ModelError

KEY = "thresholds"
# Beyond this, probabilities in float32, which exported files give, are too coarse to be told apart:
# at a logit of 12 neighbours differ by 0.01.
_MAX_LOGIT = 12.0
_MARGIN = 1.0  # from the lowest score, where all images are best said to have a label


def decide(logits: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[Any]:
    """Which labels an image has: (N, K) bool.

    Args:
        logits: (N, K) float.
        thresholds: (K,) float64, logits from which on an image has a label.
    """
    decided: NDArray[Any] = logits.astype(np.float64) >= thresholds
    return decided


def choose_thresholds(
    logits: NDArray[Any], targets: NDArray[Any], config: MultilabelConfig
) -> NDArray[Any]:
    """Choose one threshold a label, (K,) float64, as `multilabel.threshold` says.

    It lies midway between two neighbouring logits, so that rounding in an exported file does not
    move an image across it. Of thresholds that are equally good the highest is taken for F1. A
    label without positives, or without negatives, among the known targets says nothing of where to
    cut and gets 0, which is a probability of 0.5.

    Args:
        logits: (N, K) float, finite.
        targets: (N, K) float: 1, 0 or NaN.
        config: what is looked for.
    """
    thresholds = np.zeros(logits.shape[1])
    for label in range(logits.shape[1]):
        known = ~np.isnan(targets[:, label])
        scores, present = logits[known, label].astype(np.float64), targets[known, label] == 1
        if not 0 < present.sum() < len(present):
            continue
        order = np.argsort(-scores, kind="stable")
        scores, present = scores[order], present[order]
        # After the last image of each score: a threshold cannot part equal ones.
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        hits, decided = present.cumsum()[ends], ends + 1
        if config.threshold == "f1":
            best = int(np.argmax(2 * hits / (present.sum() + decided)))
        else:
            precision = hits / decided
            # The rounding of a fraction must not keep 9 of 10 from reaching 0.9.
            reached = precision >= min(config.min_precision, precision.max()) - 1e-12
            best = int(np.flatnonzero(reached)[-1])
        last = ends[best]
        below = scores[last + 1] if last + 1 < len(scores) else scores[last] - 2 * _MARGIN
        thresholds[label] = _round(float(scores[last]), float(below))
    return thresholds


def as_settings(thresholds: NDArray[Any], labels: Sequence[str]) -> dict[str, Any]:
    """The thresholds as model folders and exports keep them: probabilities by label.

    Args:
        thresholds: (K,) logits.
        labels: K names.
    """
    values = [1 / (1 + math.exp(-threshold)) for threshold in thresholds.tolist()]
    return {KEY: {name: round(p, 12) for name, p in zip(labels, values, strict=True)}}


def read_settings(settings: Mapping[str, Any], labels: Sequence[str]) -> NDArray[Any]:
    """The thresholds of a model, (K,) float64 logits; without settings 0.

    Raises:
        ModelError: they are not probabilities of exactly these labels.
    """
    if KEY not in settings:
        return np.zeros(len(labels))
    found = settings[KEY]
    same = isinstance(found, Mapping) and set(found) == set(labels)
    values = [found[name] for name in labels] if same else []
    if not same or not all(isinstance(value, float) and 0 < value < 1 for value in values):
        raise ModelError(
            f"the {KEY} of the model are not probabilities between 0 and 1 for each of its labels",
            hint="config.json or model.json was changed: restore it from a copy, or export again",
        )
    return np.array([math.log(value / (1 - value)) for value in values])


def _round(above: float, below: float) -> float:
    """The logit of the shortest decimal probability in the middle half between two logits."""
    above, below = (min(max(z, -_MAX_LOGIT), _MAX_LOGIT) for z in (above, below))
    middle, room = (above + below) / 2, (above - below) / 4
    exact = 1 / (1 + math.exp(-middle))
    for digits in range(2, 12):
        p = round(exact, digits)
        if 0 < p < 1 and abs((logit := math.log(p / (1 - p))) - middle) <= room:
            return logit
    return middle
