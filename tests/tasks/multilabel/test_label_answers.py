"""What is said of an image, and how far two models agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import label_ranking_average_precision_score

from mnft.tasks.multilabel.answers import DecidedLabels, compare, rate_one
from mnft.tasks.multilabel.average_precision import compute_average_precisions, compute_mean
from mnft.tasks.outputs import Outputs

LOGITS = np.array([[3, -1, 0.5], [-2, 2, 1], [-1, -3, -2], [5, 0.2, -1]], dtype=np.float32)
TARGETS = np.array([[1, 0, 1], [0, 1, math.nan], [0, 0, 0], [1, 0, 1]], dtype=np.float32)
THRESHOLDS = np.array([0.0, 1.0, 0.0])


def outputs(logits: NDArray[Any], positions: tuple[int, ...] = (0, 1, 2, 3)) -> Outputs:
    return Outputs(np.array(positions), logits.astype(np.float32), TARGETS[: len(logits)], {})


def test_answers_name_the_labels_above_their_thresholds() -> None:
    answers = DecidedLabels(("a", "b", "c"), THRESHOLDS)
    assert answers.headings == ["labels", "p_a", "p_b", "p_c"]
    assert answers.as_cells(LOGITS[0]) == ["a;c", "0.952574", "0.268941", "0.622459"]
    assert answers.as_cells(LOGITS[3])[0] == "a"  # b is 55% probable, and needs 73%
    assert answers.as_cells(LOGITS[2])[0] == ""
    record = answers.as_record(LOGITS[1])
    assert record["labels"] == ["b", "c"]
    assert record["probabilities"] == {"a": 0.119203, "b": 0.880797, "c": 0.731059}
    assert answers.as_record(None) == {"labels": [], "probabilities": {}}


def test_the_same_outputs() -> None:
    found = compare(outputs(LOGITS), outputs(LOGITS), thresholds=THRESHOLDS)
    assert (found.figure, found.agreement, found.largest_difference, found.drop) == ("map", 1, 0, 0)
    assert found.before.value == compute_mean(compute_average_precisions(LOGITS, TARGETS))
    assert found.before.low <= found.before.value <= found.before.high
    assert (found.num_images, found.of, found.disagreements) == (4, "logits", ())


def test_one_label_decided_otherwise_is_another_answer() -> None:
    other = LOGITS.copy()
    other[1, 1] = 0.9  # b needs 1.0
    other[2, 0] = -0.5
    found = compare(outputs(LOGITS), outputs(other), thresholds=THRESHOLDS)
    assert (found.agreement, found.disagreements) == (0.75, (1,))
    assert found.largest_difference == pytest.approx(1.1)
    assert found.mean_difference == pytest.approx(1.6 / 12)
    loose = compare(outputs(LOGITS), outputs(other), thresholds=np.zeros(3))
    assert loose.agreement == 1


def test_a_worse_ranking_is_a_drop() -> None:
    other = LOGITS.copy()
    other[:, 1] *= -1
    found = compare(outputs(LOGITS), outputs(other), thresholds=THRESHOLDS)
    assert found.drop == pytest.approx(found.before.value - found.after.value)
    assert found.drop > 0.1


def test_probabilities_are_compared_as_they_are() -> None:
    found = compare(outputs(LOGITS), outputs(LOGITS + 1), activated=True, thresholds=THRESHOLDS)
    assert found.of == "probabilities"
    expected = np.abs(1 / (1 + np.exp(-LOGITS - 1.0)) - 1 / (1 + np.exp(-LOGITS.astype(float))))
    assert found.largest_difference == pytest.approx(expected.max(), rel=1e-6)


def test_other_images_are_refused_and_a_value_that_is_no_number_is_seen() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        compare(outputs(LOGITS), outputs(LOGITS, (0, 1, 2, 4)), thresholds=THRESHOLDS)
    broken = LOGITS.copy()
    broken[3, 1] = np.nan
    found = compare(outputs(LOGITS), outputs(broken), thresholds=THRESHOLDS)
    assert np.isnan(found.largest_difference)


@pytest.mark.parametrize("seed", range(10))
def test_one_image_is_rated_as_scikit_learn_ranks_its_labels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.integers(0, 5, (1, 8)).astype(np.float32)
    target = np.array([1, 0, *generator.integers(0, 2, 6)], dtype=np.float32)
    expected = label_ranking_average_precision_score(target[None], logits)
    thresholds = np.zeros(8)
    assert rate_one(logits, target, thresholds=thresholds) == pytest.approx(expected)
    # What is unknown does not count.
    more = np.append(logits, [[9.0]], axis=1)
    unknown = np.append(target, math.nan)
    assert rate_one(more, unknown, thresholds=np.zeros(9)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([-1.0, -2], [0, 0], 1.0),
        ([-1.0, 2], [0, 0], 0.0),
        ([-1.0, 2], [0, math.nan], 1.0),
        ([1.0, 2], [1, 1], 1.0),
        ([1.0, -2], [1, 1], 0.0),
        ([1.0, -2], [math.nan, math.nan], 1.0),
        ([-1.0], [1], 0.0),
    ],
)
def test_where_nothing_can_be_ranked_the_decisions_count(
    logits: list[float], target: list[float], expected: float
) -> None:
    thresholds = np.zeros(len(logits))
    assert rate_one(np.array([logits]), target, thresholds=thresholds) == expected
