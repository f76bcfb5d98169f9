"""Thresholds: the best of all, midway between two images, and the same after they were saved."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from mnft.config.multilabel import MultilabelConfig
from mnft.errors import ModelError
from mnft.tasks.multilabel.thresholds import (
    as_settings,
    choose_thresholds,
    decide,
    read_settings,
)

F1 = MultilabelConfig()
PRECISION = MultilabelConfig(threshold="precision", min_precision=0.9)


def column(values: Any) -> NDArray[Any]:
    return np.array(values, dtype=np.float32)[:, None]


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_larger_f1(seed: int) -> None:
    generator = np.random.default_rng(seed)
    targets = (generator.random((50, 1)) < 0.3).astype(np.float32)
    logits = (targets + generator.normal(size=(50, 1))).astype(np.float32)
    logits[:20] = logits[:20].round()  # ties
    targets[45:] = np.nan
    chosen = choose_thresholds(logits, targets, F1)
    known = ~np.isnan(targets[:, 0])
    reached = f1_score(targets[known], decide(logits, chosen)[known])
    best = max(f1_score(targets[known], logits[known] >= cut) for cut in logits[known])
    assert reached == pytest.approx(best)


def test_it_lies_midway_between_the_two_images_that_it_parts() -> None:
    logits = column([3.0, 1.0, -2.0, -4.0])
    (chosen,) = choose_thresholds(logits, column([1, 1, 0, 0]), F1)
    # In the middle half between 1 and -2, with few decimals as a probability.
    assert abs(chosen - -0.5) <= 0.75
    assert as_settings(np.array([chosen]), ["a"])["thresholds"]["a"] == 0.38


def test_a_wanted_precision_gives_the_lowest_threshold_that_reaches_it() -> None:
    present = [1] * 9 + [0, 1, 0, 0]  # 9 of 10 and 10 of 11 are enough, 10 of 12 are not
    logits = column(np.arange(13.0)[::-1] / 4)
    (chosen,) = choose_thresholds(logits, column(present), PRECISION)
    assert decide(logits, np.array([chosen])).sum() == 11
    exact = PRECISION.model_copy(update={"min_precision": 10 / 11})
    assert decide(logits, choose_thresholds(logits, column(present), exact)).sum() == 11


def test_a_precision_that_is_never_reached_gives_the_highest_there_is() -> None:
    logits = column([4.0, 3.0, 2.0, 1.0])
    chosen = choose_thresholds(logits, column([0, 1, 1, 0]), PRECISION)
    assert decide(logits, chosen)[:, 0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("config", [F1, PRECISION])
def test_a_label_without_positives_or_negatives_keeps_one_half(config: MultilabelConfig) -> None:
    logits = np.array([[3.0, 3, 3], [1, 1, 1]])
    targets = np.array([[0, 1, np.nan], [0, 1, 1]])
    assert choose_thresholds(logits, targets, config).tolist() == [0, 0, 0]
    assert as_settings(np.zeros(1), ["a"]) == {"thresholds": {"a": 0.5}}


def test_where_all_images_are_best_said_to_have_it_the_lowest_is_included() -> None:
    logits = column([0.0, 1.0, 2.0])
    chosen = choose_thresholds(logits, column([1, 0, 1]), F1)
    assert decide(logits - 0.5, chosen).all()


@pytest.mark.parametrize("gap", [1e-5, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("place", [-8.0, -5.0, 0.0, 2.0, 8.0])
def test_saved_and_read_it_still_parts_them(place: float, gap: float) -> None:
    logits = column([place + gap, place])
    chosen = choose_thresholds(logits, column([1, 0]), F1)
    assert decide(logits, chosen)[:, 0].tolist() == [True, False]
    saved = json.loads(json.dumps(as_settings(chosen, ["a"])))
    assert 0 < saved["thresholds"]["a"] < 1
    found = read_settings(saved, ["a"])
    assert decide(logits, found)[:, 0].tolist() == [True, False]
    # Rounding of outputs does not move an image across it.
    step = float(logits[0, 0] - logits[1, 0]) / 5
    assert decide(logits - step, found)[0, 0]
    assert not decide(logits + step, found)[1, 0]


def test_beyond_what_probabilities_in_float32_tell_apart_it_stays_readable() -> None:
    chosen = choose_thresholds(column([60.0, 40.0, 0.0]), column([1, 0, 0]), F1)
    found = read_settings(as_settings(chosen, ["a"]), ["a"])
    assert found == pytest.approx([12.0], abs=1e-3)
    assert decide(column([60.0, 40.0, 0.0]), found)[:, 0].tolist() == [True, True, False]


@pytest.mark.parametrize(
    "thresholds",
    [
        {"a": 0.5},
        {"a": 0.5, "b": 0.5, "c": 0.5},
        {"a": 0.5, "b": 1.0},
        {"a": 0.5, "b": "0.5"},
        {"a": 0.5, "b": None},
        {"a": 0.5, "b": float("nan")},
        [0.5, 0.5],
        None,
    ],
)
def test_damaged_thresholds_are_refused(thresholds: Any) -> None:
    with pytest.raises(ModelError, match="not probabilities between 0 and 1"):
        read_settings({"thresholds": thresholds}, ["a", "b"])


def test_a_model_without_thresholds_has_one_half_for_each() -> None:
    assert read_settings({}, ["a", "b"]).tolist() == [0, 0]
