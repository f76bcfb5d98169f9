"""Metrics of several labels against scikit-learn and torch; unknown targets are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_score, recall_score

from mnft.config.multilabel import MultilabelConfig
from mnft.device.ranks.distributed import Ranks
from mnft.errors import DataError, ModelError
from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.multilabel.metrics import (
    MultilabelScore,
    compute_epoch_metrics,
    compute_evaluation,
    compute_f1,
    compute_loss,
    count_decisions,
    sigmoid,
)
from mnft.tasks.multilabel.thresholds import read_settings

LABELS = ("a", "b", "c")


def draw(seed: int = 0, *, unknown: float = 0.2) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(seed)
    targets = (generator.random((80, 3)) < [0.5, 0.2, 0.1]).astype(np.float32)
    logits = (2 * targets - 1 + generator.normal(size=(80, 3))).astype(np.float32)
    targets[generator.random((80, 3)) < unknown] = np.nan
    return logits, targets


def test_f1_precision_and_recall_are_those_of_scikit_learn_on_known_targets() -> None:
    logits, targets = draw()
    thresholds = np.array([0.3, -0.2, 0.5])
    evaluation = compute_evaluation(logits, targets, LABELS, thresholds)
    decided = logits >= thresholds
    for label, metrics in enumerate(evaluation.per_label):
        known = ~np.isnan(targets[:, label])
        own = (targets[known, label], decided[known, label])
        assert metrics.precision == pytest.approx(precision_score(*own))
        assert metrics.recall == pytest.approx(recall_score(*own))
        assert metrics.f1 == pytest.approx(f1_score(*own))
        assert metrics.support == (targets[:, label] == 1).sum()
        assert metrics.known == known.sum() < 80
        interval = metrics.precision_interval
        assert interval is not None
        hits = int((own[0] * own[1]).sum())
        assert (interval.low, interval.high) == compute_wilson_interval(hits, metrics.decided)
        assert metrics.threshold == pytest.approx(1 / (1 + np.exp(-thresholds[label])))
    assert evaluation.macro_f1 == pytest.approx(np.mean([m.f1 for m in evaluation.per_label]))
    known = ~np.isnan(targets)
    assert evaluation.micro_f1 == pytest.approx(f1_score(targets[known], decided[known]))
    right = (decided == (targets == 1)) | ~known
    assert evaluation.exact_match == right.all(1).mean()


def test_macro_and_micro_are_those_of_scikit_learn() -> None:
    logits, targets = draw(unknown=0)
    found = compute_epoch_metrics(logits, targets, np.zeros(3))
    for name in ("macro", "micro"):
        expected = f1_score(targets, logits >= 0, average=name)
        assert found._asdict()[f"{name}_f1"] == pytest.approx(expected)


def test_what_an_unknown_target_would_be_changes_nothing() -> None:
    logits, targets = draw()
    before = compute_evaluation(logits, targets, LABELS, np.zeros(3))
    unknown = np.isnan(targets)
    assert compute_evaluation(
        np.where(unknown, 9.0, logits), targets, LABELS, np.zeros(3)
    ).as_record() == (before.as_record())


def test_the_loss_is_that_of_torch_over_known_targets() -> None:
    logits, targets = draw()
    logits = 30 * logits  # also where a sigmoid is rounded to 0 or 1
    known = ~np.isnan(targets)
    criterion = torch.nn.BCEWithLogitsLoss()
    expected = criterion(
        torch.tensor(logits[known]).double(), torch.tensor(targets[known]).double()
    )
    assert compute_loss(logits, targets) == pytest.approx(float(expected), rel=1e-12)
    assert compute_loss(logits, np.full_like(targets, np.nan)) == 0.0


def test_labels_without_images_do_not_count_in_macro_f1() -> None:
    targets = np.array([[1, 0], [0, 0]], dtype=float)
    logits = np.array([[1, 1], [-1, -1]], dtype=float)
    found = compute_epoch_metrics(logits, targets, np.zeros(2))
    assert found.macro_f1 == 1.0
    assert found.micro_f1 == pytest.approx(2 / 3)
    counts = count_decisions(logits, targets, np.zeros(2))
    assert compute_f1(counts).tolist() == [1.0, 0.0]
    evaluation = compute_evaluation(logits, targets, ("a", "b"), np.zeros(2))
    b = evaluation.per_label[1]
    assert (b.average_precision, b.recall_interval) == (None, None)
    assert b.precision_interval is not None
    assert evaluation.labels_in_map == 1
    assert "over 1 of 2 labels" in evaluation.describe()["mAP"]


def test_one_label_and_images_without_any() -> None:
    targets = np.zeros((4, 1))
    logits = np.array([[-1.0], [-2], [-3], [1]])
    found = compute_evaluation(logits, targets, ("a",), np.zeros(1))
    assert (found.map, found.macro_f1, found.micro_f1, found.exact_match) == (0, 0, 0, 0.75)
    targets[3] = 1
    found = compute_evaluation(logits, targets, ("a",), np.zeros(1))
    assert (found.map, found.macro_f1, found.exact_match) == (1, 1, 1)


def score_of(logits: NDArray[Any], targets: NDArray[Any]) -> MultilabelScore:
    score = MultilabelScore(Ranks(), labels=LABELS, config=MultilabelConfig())
    for part in (slice(50, 80), slice(0, 50)):
        positions = list(range(80))[part]
        score.update(positions, torch.tensor(logits[part]), torch.tensor(targets[part]))
    return score


def test_an_epoch_and_an_evaluation_with_its_thresholds_agree_to_the_last_digit() -> None:
    logits, targets = draw()
    score = score_of(logits, targets)
    figures = score.result()
    assert list(figures) == ["loss", "map", "macro_f1", "micro_f1"]
    thresholds = read_settings(score.fit_settings(), LABELS)
    evaluation = compute_evaluation(logits, targets, LABELS, thresholds)
    record = evaluation.as_record()
    assert {name: record[name] for name in figures} == figures
    # Chosen on the same images they are better than 0.5 for each.
    assert figures["macro_f1"] > compute_epoch_metrics(logits, targets, np.zeros(3)).macro_f1


def test_no_images_and_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="no images to evaluate"):
        MultilabelScore(Ranks(), labels=LABELS, config=MultilabelConfig()).result()
    logits, targets = draw()
    logits[3, 1] = np.nan
    with pytest.raises(ModelError, match="not finite for 1 of 80 images"):
        score_of(logits, targets).result()
    with pytest.raises(ValueError, match="do not fit"):
        compute_evaluation(logits, targets[:, :2], LABELS, np.zeros(3))


def test_sigmoid_is_that_of_torch_and_does_not_overflow() -> None:
    logits = np.array([[-1000.0, -30, -1, 0, 1, 30, 1000]])
    expected = torch.sigmoid(torch.tensor(logits)).numpy()
    np.testing.assert_allclose(sigmoid(logits), expected, rtol=1e-14)
