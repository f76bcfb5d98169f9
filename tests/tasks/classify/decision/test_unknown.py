"""Figures for images of none of the classes, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mnft.tasks.classify.decision.threshold import answer
from mnft.tasks.classify.decision.unknown import judge_unknown, list_unknown


@pytest.mark.parametrize("decimals", [1, 8])
def test_auroc_equals_scikit_learn(decimals):
    rng = np.random.default_rng(0)
    known, unknown = (
        rng.uniform(0.4, 1, 200).round(decimals),
        rng.uniform(0, 0.9, 70).round(decimals),
    )
    found = judge_unknown(known, unknown, 0.6)
    truth = np.repeat([1, 0], [200, 70])
    assert found.auroc == pytest.approx(roc_auc_score(truth, np.concatenate([known, unknown])))
    assert found.accepted == (unknown >= 0.6).mean()
    low, high = found.accepted_interval
    assert low < found.accepted < high
    assert found.num_images == 70


def test_the_threshold_of_95_percent_keeps_95_percent_of_the_known():
    known = np.arange(1, 101) / 100
    found = judge_unknown(known, np.array([0.05, 0.06, 0.5, -1.0]), None)
    assert found.accepted_at_95 == 0.5  # 95 of the 100 are at least 0.06
    assert found.accepted == 0.75  # without a threshold all but the one that is said to be none


def test_the_most_confident_answers_come_first():
    probabilities = np.array([[0.6, 0.1, 0.3], [0.8, 0.1, 0.1], [0.15, 0.05, 0.8]])
    rows = list_unknown(["a", "b", "c"], probabilities, ["rose", "tulip", "_other"], 0.7, 2)
    assert [row.path for row in rows] == ["b", "a", "c"]
    assert [row.passes for row in rows] == [True, False, False]
    assert [row.name for row in rows] == ["rose", "rose", "rose"]
    assert rows[2].probability == 0.15
    assert answer(probabilities, 2)[1].tolist() == [0.6, 0.8, -1]
