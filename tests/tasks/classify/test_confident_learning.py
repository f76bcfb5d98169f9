"""Likely wrong labels: the confident joint, and probabilities out of sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnft.tasks.classify.confident_learning import (
    cross_validate,
    find_contradictions,
    find_label_errors,
)
from mnft.tasks.outputs import Features


def test_the_off_diagonal_of_the_confident_joint() -> None:
    """Thresholds 0.7, 0.6 and 0.69; worked out by hand."""
    probabilities = np.array(
        [
            [0.9, 0.05, 0.05],
            [0.5, 0.45, 0.05],  # unsure, but nothing else is confident
            [0.3, 0.6, 0.1],  # labelled 1, and so
            [0.3, 0.6, 0.1],
            [0.75, 0.1, 0.15],  # labelled 2, confidently 0
            [0.0, 0.02, 0.98],
            [0.0, 0.02, 0.98],
            [0.0, 0.0, 1.0],
            [0.6, 0.05, 0.35],  # labelled 2, rather 0, but less than images of 0 are
        ]
    )
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2, 2])
    thresholds = [probabilities[labels == k, k].mean() for k in range(3)]
    assert np.allclose(thresholds, [0.7, 0.6, 0.692])
    (found,) = find_contradictions(probabilities, labels)
    assert (found.position, found.suggested) == (4, 0)
    assert found.margin == pytest.approx(0.6)


def test_the_most_certain_comes_first_and_nothing_of_nothing() -> None:
    probabilities = np.array([[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5 + [[0.05, 0.95], [0.01, 0.99]])
    labels = np.array([0] * 5 + [1] * 5 + [0, 0])
    assert [error.position for error in find_contradictions(probabilities, labels)] == [11, 10]
    assert find_contradictions(np.empty((0, 3)), np.empty(0, dtype=np.int64)) == []


def features(count: int = 300, classes: int = 4) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, 16)) * 2.5
    return centres[labels] + rng.normal(size=(count, 16)), labels


def test_flipped_labels_are_found() -> None:
    values, labels = features()
    assert len(find_contradictions(cross_validate(values, labels, range(300), 0), labels)) <= 3
    wrong = np.random.default_rng(1).permutation(300)[:15]
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % 4
    found = find_contradictions(cross_validate(values, given, range(300), 0), given)
    hits = [e for e in found if e.position in set(wrong.tolist())]
    assert len(hits) >= 8
    assert len(hits) >= 0.8 * len(found)
    assert all(e.suggested == labels[e.position] for e in hits)


def test_an_image_is_judged_without_itself_and_its_copies() -> None:
    """Labels drawn by chance can be learned by heart, but not predicted."""
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(60, 200)), rng.integers(0, 2, 60)
    by_itself = cross_validate(values, labels, range(60), 0)
    assert 0.25 < (by_itself.argmax(1) == labels).mean() < 0.75
    twice, both = np.concatenate([values, values]), np.concatenate([labels, labels])
    apart = cross_validate(twice, both, [*range(60), *range(60)], 0)
    assert 0.25 < (apart.argmax(1) == both).mean() < 0.75
    assert np.allclose(by_itself.sum(1), 1)


def test_tiny_and_lopsided_data() -> None:
    """Nothing can be said of them, so nothing is."""
    for labels in ([0, 0, 2], [0, 1], [1, 1, 1], [], [0, 0, 0, 0, 1]):
        given = np.array(labels, dtype=np.int64)
        values = np.eye(max(1, len(labels)))[: len(labels)]
        found = cross_validate(values, given, range(len(labels)), 0)
        assert len(found) == len(labels)
        assert find_contradictions(found, given) == []


def test_the_model_judges_what_is_new_to_it_and_cross_validation_the_rest() -> None:
    values, labels = features()
    given = labels.copy()
    given[:2] = (given[:2] + 1) % 4
    logits = 5.0 * np.eye(4)[labels]  # a model that knows every label
    logits[:2] *= 2  # and is surer than usual of these two
    held = Features(torch.from_numpy(values).float(), torch.from_numpy(given))
    names = ("a", "b", "c", "d")

    def find(trained: NDArray[Any], logits: NDArray[Any]) -> list[int]:
        groups = list(map(str, range(300)))
        found = find_label_errors(held, logits, trained, groups, class_names=names)
        return [error.position for error in found]

    everything, nothing = np.ones(300, dtype=bool), np.zeros(300, dtype=bool)
    assert find(nothing, logits) == [0, 1]
    # A model that learned the wrong labels by heart says nothing; cross-validation still does.
    by_heart = 20.0 * np.eye(4)[given]
    assert find(nothing, by_heart) == []
    assert {0, 1} & set(find(everything, by_heart))
    (first, *_) = find_label_errors(
        held, logits, nothing, list(map(str, range(300))), class_names=names
    )
    assert first.what == "labelled b, looks like a (more probable by 100%)"
