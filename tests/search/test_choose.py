"""What the choice says of luck: noise between seeds, and the optimism of the best of many."""

from __future__ import annotations

import random
import statistics

import pytest

from mnft.search.choose import compute_optimism, pool_noise


def test_the_optimism_is_the_expected_largest_of_normal_draws():
    # Tables of order statistics: 0 of 1, 0.564 of 2, 1.539 of 10, 1.867 of 20, 2.508 of 100.
    for trials, expected in ((1, 0.0), (2, 0.564), (10, 1.539), (20, 1.867), (100, 2.508)):
        assert compute_optimism(trials) == pytest.approx(expected, abs=0.05)


def test_noise_is_pooled_within_points():
    assert pool_noise([[1.0, 1.0], [5.0, 5.0]]) == 0.0
    assert pool_noise([[1.0, 3.0], [11.0, 13.0]]) == pytest.approx(2**0.5)
    assert pool_noise([[1.0], [2.0]]) is None


def test_the_mean_of_further_seeds_is_honest_where_the_best_is_not():
    """Equal points: what was chosen looks better by the optimism, its further seeds do not."""
    generator = random.Random(1)
    chosen, again = [], []
    for _ in range(400):
        chosen.append(max(generator.gauss(0.9, 0.01) for _ in range(20)))
        again.append(generator.gauss(0.9, 0.01))
    gain = statistics.fmean(chosen) - 0.9
    assert gain == pytest.approx(0.01 * compute_optimism(20), abs=0.002)
    assert statistics.fmean(again) == pytest.approx(0.9, abs=0.002)
