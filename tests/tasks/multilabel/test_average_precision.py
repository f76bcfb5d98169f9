"""Average precision against scikit-learn, and its bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mnft.tasks.multilabel import average_precision
from mnft.tasks.multilabel.average_precision import (
    bootstrap,
    compute_average_precision,
    compute_average_precisions,
    compute_mean,
    rank,
)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_that_of_scikit_learn_with_ties_unknown_targets_and_weights(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 7, (40, 3)).astype(np.float32)  # many ties
    targets = generator.integers(0, 2, (40, 3)).astype(np.float32)
    targets[generator.random((40, 3)) < 0.25] = np.nan
    found = compute_average_precisions(scores, targets)
    for label in range(3):
        known = ~np.isnan(targets[:, label])
        own = (targets[known, label], scores[known, label])
        assert found[label] == pytest.approx(average_precision_score(*own), abs=1e-12)
        weights = generator.integers(0, 4, 40).astype(float)
        ranking = rank(scores[:, label], targets[:, label])
        assert ranking is not None
        weighted = compute_average_precision(ranking, weights[:, None])[0]
        expected = average_precision_score(*own, sample_weight=weights[known])
        assert weighted == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    targets = np.array([[1.0], [0.0], [1.0], [0.0]])
    # Precision 1 at the first positive, 2/3 at the second.
    assert compute_average_precisions(scores, targets)[0] == pytest.approx((1 + 2 / 3) / 2)
    # Equal scores are one step: 2 of 4 for both positives.
    assert compute_average_precisions(0 * scores, targets)[0] == pytest.approx(0.5)


def test_labels_without_positives_or_negatives_have_none_and_do_not_count() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 2.0], [0.4, 0.5, 0.6, 1.0]])
    targets = np.array([[0, 1, 1, 1], [0, 1, np.nan, 0]])
    found = compute_average_precisions(scores, targets)
    assert np.isnan(found).tolist() == [True, True, True, False]
    assert compute_mean(found) == 1.0
    assert compute_mean(found[:3]) == 0.0
    interval, per_label = bootstrap(scores[:, :3], targets[:, :3])
    assert (interval.low, interval.high) == (0, 0)
    assert per_label == [None, None, None]


def test_the_bootstrap_is_that_of_a_loop_over_resamples() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random((60, 2)) < 0.3).astype(float)
    scores = targets + generator.normal(size=(60, 2))
    interval, per_label = bootstrap(scores, targets)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        chosen = generator.integers(0, 60, 60)
        drawn.append(compute_average_precisions(scores[chosen], targets[chosen]))
    for label, own in enumerate(per_label):
        assert own is not None
        expected = np.percentile([row[label] for row in drawn], [2.5, 97.5])
        assert (own.low, own.high) == pytest.approx(tuple(expected), abs=1e-9)
    expected = np.percentile([row.mean() for row in drawn], [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert bootstrap(scores, targets) == (interval, per_label)  # the seed is fixed


def test_chunks_and_fewer_resamples_do_not_matter_much(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    targets = (generator.random((50, 3)) < 0.3).astype(float)
    scores = targets + generator.normal(size=(50, 3))
    whole = bootstrap(scores, targets)
    monkeypatch.setattr(average_precision, "_CHUNK_ELEMENTS", 50 * 7)
    assert bootstrap(scores, targets) == whole
    monkeypatch.setattr(average_precision, "_MOST_CELLS", 1)  # then 200 resamples
    fewer = bootstrap(scores, targets)[0]
    assert fewer != whole[0]
    assert (fewer.low, fewer.high) == pytest.approx((whole[0].low, whole[0].high), abs=0.05)


def test_a_rare_label_that_resamples_lose_keeps_an_interval() -> None:
    targets = np.zeros((40, 1))
    targets[3] = 1  # a third of the resamples lack it
    scores = np.arange(40.0)[::-1, None]
    interval, (own,) = bootstrap(scores, targets)
    assert own is not None
    assert interval == own
    assert 0 < own.low <= 0.25 <= own.high <= 1
