"""The gates of an exported file in both directions, and what parity.json says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnft.config.edge import ExportConfig
from mnft.data.manifest import Sample
from mnft.errors import GateError
from mnft.evaluation.images import ImageSet, every_nth
from mnft.evaluation.parity import check_gates, describe_agreement, list_failures
from mnft.tasks.outputs import Agreement, Rate

GATES = ExportConfig()


def parity(agreement: float = 1.0, after: float = 0.9, largest: float = 0.0) -> Agreement:
    before = Rate(0.9, 0.85, 0.93)
    rate = Rate(after, after, after)
    return Agreement(
        "accuracy", "accuracy", 200, agreement, before, rate, largest, 0.0, (0, 2), "logits"
    )


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ({}, True),
        ({"agreement": 0.99}, True),
        ({"agreement": 0.985}, False),
        # One image of 200 is half a point.
        ({"after": 0.895}, True),
        ({"after": 0.89}, False),
        ({"after": 0.95}, True),
        ({"largest": 100.0}, True),
        ({"largest": float("nan")}, False),
        ({"largest": float("inf")}, False),
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
    found = parity(agreement=0.9, after=0.8)
    failures = " ".join(list_failures(found, GATES))
    assert "90.00% of 200 images" in failures
    assert "export.min_agreement" in failures
    assert "10.00% below the trained model's 90.00%" in failures
    assert not list_failures(found, ExportConfig(min_agreement=0.9, max_accuracy_drop=0.1))
    assert list_failures(found, ExportConfig(min_agreement=0.91, max_accuracy_drop=0.1))
    assert list_failures(found, ExportConfig(min_agreement=0.9, max_accuracy_drop=0.09))


def test_values_that_are_no_numbers_fail() -> None:
    gates = ExportConfig(min_agreement=0, max_accuracy_drop=1)
    failures = list_failures(parity(largest=float("nan")), gates)
    assert failures == ["it gives values that are not finite"]


def test_what_parity_json_says() -> None:
    images = ImageSet(
        Path("d"), "val", [Sample(str(i), "a", "val", "0") for i in range(3)], {}, Path("d")
    )
    said = describe_agreement(parity(after=0.8), images)
    assert said["disagreements"] == ["0", "2"]
    assert (said["accuracy_before"], said["accuracy_after"]) == (0.9, 0.8)
    assert said["accuracy_drop"] == pytest.approx(0.1)


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
