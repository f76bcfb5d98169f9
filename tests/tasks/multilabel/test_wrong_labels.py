"""Wrong labels that were put in on purpose are found, one label at a time."""

from __future__ import annotations

import numpy as np
import torch

from mnft.tasks.multilabel.confident_learning import (
    _deal,
    cross_validate,
    find_label_errors,
    find_wrong_cells,
)
from mnft.tasks.outputs import Features

LABELS = ("beard", "hat")


def draw(count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell both labels, right targets, and targets of which 5% are flipped."""
    generator = np.random.default_rng(0)
    right = (generator.random((count, 2)) < [0.4, 0.15]).astype(np.float32)
    features = (4 * right @ np.eye(2, 6) + generator.normal(size=(count, 6))).astype(np.float32)
    flipped = generator.random((count, 2)) < 0.05
    return features, right, np.where(flipped, 1 - right, right).astype(np.float32)


def test_by_hand() -> None:
    probabilities = np.array([[0.9], [0.8], [0.1], [0.2], [0.05], [0.95]])
    targets = np.array([[1.0], [1], [1], [0], [0], [0]])
    # Present and as improbable as absence usually is; absent and as probable as presence usually.
    (first, second) = find_wrong_cells(probabilities, targets)
    assert (first[:2], second[:2]) == ((5, 0), (2, 0))
    assert (round(first[2], 9), round(second[2], 9)) == (0.9, 0.8)
    targets[5] = np.nan
    assert [cell[:2] for cell in find_wrong_cells(probabilities, targets)] == [(2, 0)]
    probabilities[2] = np.nan
    assert find_wrong_cells(probabilities, targets) == []


def test_a_label_that_is_still_the_more_probable_one_is_not_wrong() -> None:
    # 45% is as much as images with the label usually have, but absence is more probable.
    probabilities = np.array([[0.4], [0.5], [0.45], [0.1], [0.05], [0.1]])
    targets = np.array([[1.0], [1], [0], [0], [0], [0]])
    assert find_wrong_cells(probabilities, targets) == []
    probabilities[2] = 0.55
    assert [cell[:2] for cell in find_wrong_cells(probabilities, targets)] == [(2, 0)]


def test_flipped_labels_are_found_by_cross_validation() -> None:
    features, right, targets = draw()
    groups = [str(i) for i in range(len(targets))]
    probabilities = cross_validate(features, targets, groups, 0)
    assert not np.isnan(probabilities).any()
    found = {cell[:2] for cell in find_wrong_cells(probabilities, targets)}
    wrong = {(int(i), int(k)) for i, k in np.argwhere(right != targets)}
    assert len(wrong) > 30
    assert len(found & wrong) > 0.6 * len(wrong)
    assert len(found & wrong) > 0.9 * len(found)


def test_images_are_named_with_what_they_have_and_look_like() -> None:
    features, _, targets = draw()
    logits = np.where(targets == 1, 4.0, -4.0)
    logits[7] *= -1  # both labels contradicted
    trained = np.zeros(len(targets), dtype=bool)
    targets[7] = [1, 0]
    logits[7] = [-4, 4]
    groups = [str(i) for i in range(len(targets))]
    own = Features(torch.tensor(features), torch.tensor(targets))
    (error,) = find_label_errors(own, logits, trained, groups, labels=LABELS)
    assert error.position == 7
    assert error.what == (
        "labelled beard, looks without it (more probable by 96%); "
        "not labelled hat, looks with it (more probable by 96%)"
    )
    # The same images, when the model learned from them: it cannot judge them itself.
    errors = find_label_errors(own, logits, ~trained, groups, labels=LABELS)
    assert len(errors) > 20


def test_folds_hold_some_of_each_label_and_keep_groups_whole() -> None:
    targets = np.zeros((60, 2))
    targets[:5, 0] = targets[20:50, 1] = 1
    groups = [str(i // 2 + 100 * (i < 5) * i) for i in range(60)]
    folds = _deal(targets, groups, 5, 0)
    assert sorted(folds[:5]) == [0, 1, 2, 3, 4]
    assert all(4 <= (folds[20:50] == fold).sum() <= 8 for fold in range(5))
    for group in set(groups):
        assert len({int(f) for f, g in zip(folds, groups, strict=True) if g == group}) == 1


def test_too_few_images_say_nothing() -> None:
    features = np.ones((2, 3), dtype=np.float32)
    targets = np.array([[1.0], [0.0]], dtype=np.float32)
    assert np.isnan(cross_validate(features, targets, ["a", "a"], 0)).all()
    # With one image of each, the other fold lacks one of the two.
    assert np.isnan(cross_validate(features, targets, ["a", "b"], 0)).all()
    nothing = cross_validate(features[:0], targets[:0], [], 0)
    assert nothing.shape == (0, 1)
