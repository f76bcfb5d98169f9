"""Likely wrong labels by confident learning, from probabilities out of sample."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.metrics import softmax
from mnft.tasks.outputs import Features, LabelError

_FOLDS = 5
# Inverse strength of the penalty: the best of 0.001 to 0.1 on flowers with wrong labels, though
# little changes between them (docs/data-check.md).
_C = 0.01
_SEED = 0


@dataclass(frozen=True, slots=True)
class Contradiction:
    """An image whose label its probabilities contradict.

    Attributes:
        position: position of the image.
        suggested: the class that the image more likely belongs to.
        margin: probability of that class minus that of its label.
    """

    position: int
    suggested: int
    margin: float


def find_label_errors(
    features: Features,
    values: NDArray[Any],
    trained: NDArray[Any],
    groups: Sequence[str],
    *,
    class_names: Sequence[str],
) -> list[LabelError]:
    """Find images whose label is likely wrong; see `mnft.tasks.outputs.FindLabelErrors`.

    Args:
        features: features of N images, with their labels.
        values: (N, K) logits.
        trained: (N,) bool, whether the model may have learned from the image.
        groups: the content of each image.
        class_names: K names, in the order of the logits.

    Returns:
        The errors of images that the model judged, then those of the others; of each the ones with
        the largest margin first.
    """
    labels = features.targets.numpy()
    crosswise = cross_validate(
        features.values.numpy()[trained],
        labels[trained],
        [group for group, learned in zip(groups, trained, strict=True) if learned],
        _SEED,
    )
    errors = []
    for probabilities, chosen in ((softmax(values[~trained]), ~trained), (crosswise, trained)):
        positions = np.flatnonzero(chosen)
        for found in find_contradictions(probabilities, labels[chosen]):
            position = int(positions[found.position])
            what = f"labelled {class_names[labels[position]]}, looks like "
            what += f"{class_names[found.suggested]} (more probable by {found.margin:.0%})"
            errors.append(LabelError(position, what))
    return errors


def find_contradictions(probabilities: NDArray[Any], labels: NDArray[Any]) -> list[Contradiction]:
    """The off-diagonal of the confident joint (Northcutt, Jiang, Chuang 2021, "Confident Learning",
    JAIR 70, section 3.1, equations 1 and 2).

    An image is confidently of a class if its probability is at least the mean probability of that
    class among the images labelled so. It is named if the most probable of its confident classes is
    not its label.

    Args:
        probabilities: (N, K), each row by a model that was not trained on the image.
        labels: (N,) int64.

    Returns:
        The errors, those with the largest margin first.
    """
    count, num_classes = probabilities.shape
    if not count:
        return []
    thresholds = np.full(num_classes, np.inf)
    for label in np.unique(labels):
        thresholds[label] = probabilities[labels == label, label].mean()
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = confident.argmax(1)
    rows = np.arange(count)
    is_error = (confident[rows, best] >= 0) & (best != labels)
    margins = probabilities[rows, best] - probabilities[rows, labels]
    found = [
        Contradiction(int(i), int(best[i]), float(margins[i])) for i in np.flatnonzero(is_error)
    ]
    return sorted(found, key=lambda error: (-error.margin, error.position))


def cross_validate(
    features: NDArray[Any], labels: NDArray[Any], groups: Sequence[object], seed: int
) -> NDArray[Any]:
    """Compute the probabilities of each image by a classifier fitted to the other folds.

    The classifier is a logistic regression on standardised features. Each of the five folds holds
    every class, if there are enough images of it; images of one group stay in one fold.

    Args:
        features: (N, D) float.
        labels: (N,) int64.
        groups: group of each image, such as its content.
        seed: seed of the folds.

    Returns:
        (N, K), where K is the largest label plus one; 0 for classes without images. If there are
        too few images, each has probability 1 for its own label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(_FOLDS, len(set(groups)), int(np.bincount(labels).max(initial=0)))
    probabilities = np.zeros((len(labels), int(labels.max(initial=0)) + 1))
    if folds < 2 or len(np.unique(labels)) < 2:
        probabilities[np.arange(len(labels)), labels] = 1.0  # too few to say anything
        return probabilities
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        splits = list(splitter.split(features, labels, groups))
    for train, held_out in splits:
        if len(np.unique(labels[train])) < 2:
            probabilities[held_out, labels[held_out]] = 1.0
            continue
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=_C, max_iter=500))
        classifier.fit(features[train], labels[train])
        held = classifier.predict_proba(features[held_out])
        probabilities[np.ix_(held_out, classifier.classes_)] = held
    return probabilities
