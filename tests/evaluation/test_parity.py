"""Differences of two models' outputs, and the gates in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnft.config.edge import ExportConfig
from mnft.data.manifest import Sample
from mnft.errors import GateError
from mnft.evaluation.images import ImageSet, every_nth
from mnft.evaluation.parity import Parity, check_gates, compute_parity, list_failures
from mnft.tasks.base import Outputs
from mnft.tasks.classify.metrics import softmax

GATES = ExportConfig()
TARGETS = np.array([0, 1, 2, 0])
LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0], [5, 0, 1]], dtype=np.float32)


def outputs(logits: NDArray[Any], positions: tuple[int, ...] = (0, 1, 2, 3)) -> Outputs:
    return Outputs(np.array(positions), logits.astype(np.float32), TARGETS[: len(logits)], {})


def parity(**values: float) -> Parity:
    whole = {
        "agreement": 1.0,
        "accuracy_before": 0.9,
        "accuracy_after": 0.9,
        "largest_difference": 0.0,
        "mean_difference": 0.0,
    }
    return Parity(num_images=200, disagreements=(), of="logits", **whole | values)


def test_the_same_outputs() -> None:
    found = compute_parity(outputs(LOGITS), outputs(LOGITS), probabilities=False)
    assert (found.agreement, found.largest_difference, found.mean_difference) == (1, 0, 0)
    assert (found.accuracy_before, found.accuracy_after, found.accuracy_drop) == (0.75, 0.75, 0)
    assert found.disagreements == ()
    assert (found.num_images, found.of) == (4, "logits")


def test_differences_and_disagreements() -> None:
    other = LOGITS.copy()
    other[0] = [1, 1.5, 0]  # was right, is wrong
    other[2, 2] = 4  # was wrong, is right
    found = compute_parity(outputs(LOGITS), outputs(other), probabilities=False)
    assert found.disagreements == (0, 2)
    assert found.agreement == 0.5
    assert found.accuracy_before == found.accuracy_after == 0.75
    assert found.largest_difference == 4
    assert found.mean_difference == pytest.approx((2 + 0.5 + 4) / 12)
    images = ImageSet(Path("d"), "val", [Sample(str(i), "a", "val", "0") for i in range(3)], {})
    assert found.describe(images)["disagreements"] == ["0", "2"]


def test_probabilities_are_compared_as_they_are() -> None:
    logarithms = np.log(softmax(LOGITS))
    found = compute_parity(outputs(LOGITS), outputs(logarithms), probabilities=True)
    assert found.largest_difference < 1e-7
    assert found.of == "probabilities"
    # A file without its softmax, or one that is off by a factor, must not look right.
    doubled = compute_parity(outputs(LOGITS), outputs(logarithms + np.log(2)), probabilities=True)
    assert doubled.largest_difference == pytest.approx(softmax(LOGITS).max(), abs=1e-6)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        compute_parity(outputs(LOGITS), outputs(LOGITS, (0, 1, 2, 4)), probabilities=False)
    nothing = Outputs(np.zeros(0), np.zeros((0, 3)), np.zeros(0), {})
    with pytest.raises(ValueError, match="not of the same images"):
        compute_parity(nothing, nothing, probabilities=False)


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ({}, True),
        ({"agreement": 0.99}, True),
        ({"agreement": 0.985}, False),
        # One image of 200 is half a point.
        ({"accuracy_after": 0.895}, True),
        ({"accuracy_after": 0.89}, False),
        ({"accuracy_after": 0.95}, True),
        ({"largest_difference": 100.0}, True),
        ({"largest_difference": float("nan")}, False),
        ({"largest_difference": float("inf")}, False),
    ],
)
def test_gates(values: dict[str, float], passes: bool) -> None:
    found = parity(**values)
    assert (not list_failures(found, GATES)) == passes
    if passes:
        check_gates(found, GATES, "the file")
        return
    with pytest.raises(GateError, match="the file does not answer") as caught:
        check_gates(found, GATES, "the file")
    assert caught.value.exit_code == 3


def test_gates_are_those_of_the_config() -> None:
    found = parity(agreement=0.9, accuracy_after=0.8)
    failures = " ".join(list_failures(found, GATES))
    assert "90.00% of 200 images" in failures
    assert "export.min_agreement" in failures
    assert "10.00% below the trained model's 90.00%" in failures
    assert not list_failures(found, ExportConfig(min_agreement=0.9, max_accuracy_drop=0.1))
    assert list_failures(found, ExportConfig(min_agreement=0.91, max_accuracy_drop=0.1))
    assert list_failures(found, ExportConfig(min_agreement=0.9, max_accuracy_drop=0.09))


def test_values_that_are_no_numbers_fail() -> None:
    broken = LOGITS.copy()
    broken[3, 1] = np.nan  # argmax takes it for the largest
    found = compute_parity(outputs(LOGITS), outputs(broken), probabilities=False)
    failures = list_failures(found, ExportConfig(min_agreement=0, max_accuracy_drop=1))
    assert failures == ["it gives values that are not finite"]


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (7, 7), (5, 9), (1000, 512), (3, 1)])
def test_positions_are_spread_evenly(count: int, wanted: int) -> None:
    positions = list(every_nth(count, wanted))
    assert len(positions) == min(count, wanted) == len(set(positions))
    assert positions == sorted(positions)
    assert positions[0] >= 0
    assert positions[-1] < count


def test_each_class_has_its_share() -> None:
    # 100 classes of 8 images: 512 positions must not leave one out.
    classes = np.repeat(np.arange(100), 8)[list(every_nth(800, 512))]
    counts = np.bincount(classes, minlength=100)
    assert set(counts) == {5, 6}
