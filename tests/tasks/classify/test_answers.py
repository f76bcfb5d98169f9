"""Classes that are named, and how far the logits of two models agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnft.tasks.classify.answers import ProbableClasses, compare
from mnft.tasks.classify.metrics import compute_wilson_interval, softmax
from mnft.tasks.outputs import Outputs

TARGETS = np.array([0, 1, 2, 0])
LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0], [5, 0, 1]], dtype=np.float32)


def outputs(logits: NDArray[Any], positions: tuple[int, ...] = (0, 1, 2, 3)) -> Outputs:
    return Outputs(np.array(positions), logits.astype(np.float32), TARGETS[: len(logits)], {})


def test_the_same_outputs() -> None:
    found = compare(outputs(LOGITS), outputs(LOGITS))
    assert (found.agreement, found.largest_difference, found.mean_difference) == (1, 0, 0)
    assert (found.before.value, found.after.value, found.drop) == (0.75, 0.75, 0)
    assert found.disagreements == ()
    assert (found.num_images, found.of) == (4, "logits")


def test_differences_and_disagreements() -> None:
    other = LOGITS.copy()
    other[0] = [1, 1.5, 0]  # was right, is wrong
    other[2, 2] = 4  # was wrong, is right
    found = compare(outputs(LOGITS), outputs(other))
    assert found.disagreements == (0, 2)
    assert found.agreement == 0.5
    assert found.before == found.after
    assert found.before.value == 0.75
    assert found.largest_difference == 4
    assert found.mean_difference == pytest.approx((2 + 0.5 + 4) / 12)


def test_probabilities_are_compared_as_they_are() -> None:
    logarithms = np.log(softmax(LOGITS))
    found = compare(outputs(LOGITS), outputs(logarithms), activated=True)
    assert found.largest_difference < 1e-7
    assert found.of == "probabilities"
    # A file without its softmax, or one that is off by a factor, must not look right.
    doubled = compare(outputs(LOGITS), outputs(logarithms + np.log(2)), activated=True)
    assert doubled.largest_difference == pytest.approx(softmax(LOGITS).max(), abs=1e-6)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        compare(outputs(LOGITS), outputs(LOGITS, (0, 1, 2, 4)))
    nothing = Outputs(np.zeros(0), np.zeros((0, 3)), np.zeros(0), {})
    with pytest.raises(ValueError, match="not of the same images"):
        compare(nothing, nothing)


def test_accuracies_have_their_wilson_intervals() -> None:
    found = compare(outputs(LOGITS), outputs(LOGITS))
    assert (found.before.low, found.before.high) == compute_wilson_interval(3, 4)


def test_a_value_that_is_no_number_is_in_the_largest_difference() -> None:
    broken = LOGITS.copy()
    broken[3, 1] = np.nan  # argmax takes it for the largest
    assert np.isnan(compare(outputs(LOGITS), outputs(broken)).largest_difference)


def test_answers_name_the_most_probable_classes() -> None:
    answers = ProbableClasses(("a", "b", "c"), 2)
    assert answers.headings == ["class_1", "probability_1", "class_2", "probability_2"]
    p = softmax(LOGITS)[1]
    assert answers.as_cells(LOGITS[1]) == ["b", f"{p[1]:.6f}", "c", f"{p[2]:.6f}"]
    (first, second) = answers.as_record(LOGITS[1])["predictions"]
    assert (first["class"], second["class"]) == ("b", "c")
    assert first["probability"] == round(p[1], 6)
    assert answers.as_record(None) == {"predictions": []}
    assert len(ProbableClasses(("a", "b", "c"), 9).headings) == 6
