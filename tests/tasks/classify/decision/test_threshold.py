"""Thresholds against a search over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from mnft.tasks.classify.decision import threshold
from mnft.tasks.classify.decision.threshold import MIN_KEPT, answer, choose_threshold, count_kept


def draw(seed, num_images=300, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.3, 1, num_images)
    if ties:
        scores = scores.round(2)
    return scores, rng.uniform(size=num_images) < scores


def search(scores, correct, target):
    """The most answers that any threshold keeps at this accuracy, by trying all."""
    kept = [scores >= t for t in np.unique(scores)]
    reached = [k.sum() for k in kept if k.sum() >= MIN_KEPT and correct[k].mean() >= target - 1e-12]
    return max(reached, default=None)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("target", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_keeps_as_much_as_the_best_of_all(seed, target, ties):
    scores, correct = draw(seed, ties=ties)
    chosen, best = choose_threshold(scores, correct, target)
    expected = search(scores, correct, target)
    assert (None if chosen is None else chosen.num_kept) == expected
    assert best is not None
    if chosen is not None:
        assert chosen == count_kept(scores, correct, chosen.threshold)
        assert chosen.accuracy >= target - 1e-12
    else:
        assert best.accuracy < target
        assert best == count_kept(scores, correct, best.threshold)


def test_a_threshold_lies_in_the_middle_half_between_two_scores_and_is_short():
    scores = np.array([0.9] * 20 + [0.8] * 20)
    correct = np.array([True] * 20 + [False] * 20)
    chosen, _ = choose_threshold(scores, correct, 0.99)
    assert chosen.threshold == 0.85
    scores = np.array([0.87654321] * 20 + [0.87654301] * 20)
    chosen, _ = choose_threshold(scores, correct, 0.99)
    assert 0.87654306 <= chosen.threshold <= 0.87654316


def test_a_target_that_all_answers_reach_needs_no_threshold():
    scores, correct = np.linspace(0.5, 1, 50), np.ones(50, dtype=bool)
    chosen, _ = choose_threshold(scores, correct, 0.9)
    assert (chosen.threshold, chosen.share) == (0.0, 1.0)


def test_too_few_answers_are_not_judged():
    scores, correct = np.linspace(0.5, 1, MIN_KEPT - 1), np.ones(MIN_KEPT - 1, dtype=bool)
    assert choose_threshold(scores, correct, 0.9) == (None, None)
    assert choose_threshold(np.array([-1.0] * 40), np.zeros(40, dtype=bool), 0.5) == (None, None)


def test_an_image_of_none_of_the_classes_is_never_named():
    probabilities = np.array([[0.2, 0.1, 0.7], [0.5, 0.1, 0.4]])
    predicted, scores = answer(probabilities, 2)
    assert predicted.tolist() == [2, 0]
    assert scores.tolist() == [-1, 0.5]
    assert count_kept(scores, np.array([True, True]), 0.0).num_kept == 1


def test_the_curve_falls_from_the_surest_answers_to_all():
    scores, correct = draw(0, ties=True)
    levels, kept, hits = threshold.compute_curve(scores, correct)
    for level, num_kept, num_hits in zip(levels, kept, hits, strict=True):
        assert num_kept == (scores >= level).sum()
        assert num_hits == correct[scores >= level].sum()
    assert kept[-1] == len(scores)
