"""Likely wrong labels by confident learning, one label at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnft.tasks.classify.confident_learning import find_contradictions
from mnft.tasks.multilabel.linear_fit import fit_logistic
from mnft.tasks.multilabel.metrics import sigmoid
from mnft.tasks.outputs import Features, LabelError

_FOLDS = 5
# The penalty of scikit-learn's logistic regression with C = 0.01, as for one class an image, is
# this divided by the number of images.
_PENALTY = 100.0
_SEED = 0
_NAMED = 3  # labels of one image that are named


def find_label_errors(
    features: Features,
    values: NDArray[Any],
    trained: NDArray[Any],
    groups: Sequence[str],
    *,
    labels: Sequence[str],
) -> list[LabelError]:
    """Find images with labels that are likely wrong; see `mnft.tasks.outputs.FindLabelErrors`.

    Each label is judged by itself as a problem of two classes (Northcutt, Jiang, Chuang 2021,
    "Confident Learning", JAIR 70, section 3.1): an image is named whose label is present although
    its absence is as probable as it usually is for images without, or the reverse, and at least 50%
    probable.

    Args:
        features: features of N images, with (N, K) targets.
        values: (N, K) logits.
        trained: (N,) bool, whether the model may have learned from the image.
        groups: the content of each image.
        labels: K names, in the order of the logits.

    Returns:
        The errors of images that the model judged, then those of the others; of each the ones with
        the largest margin first.
    """
    targets = features.targets.numpy()
    crosswise = cross_validate(
        features.values.numpy()[trained],
        targets[trained],
        [group for group, learned in zip(groups, trained, strict=True) if learned],
        _SEED,
    )
    errors: list[LabelError] = []
    for probabilities, chosen in ((sigmoid(values[~trained]), ~trained), (crosswise, trained)):
        positions = np.flatnonzero(chosen)
        found = find_wrong_cells(probabilities, targets[chosen])
        by_image: dict[int, list[str]] = defaultdict(list)
        for row, label, margin in found:
            was = "" if targets[chosen][row, label] else "not "
            looks = "without" if targets[chosen][row, label] else "with"
            what = (
                f"{was}labelled {labels[label]}, looks {looks} it (more probable by {margin:.0%})"
            )
            by_image[row].append(what)
        for row, parts in by_image.items():
            more = f"; and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
            errors.append(LabelError(int(positions[row]), "; ".join(parts[:_NAMED]) + more))
    return errors


def find_wrong_cells(
    probabilities: NDArray[Any], targets: NDArray[Any]
) -> list[tuple[int, int, float]]:
    """Find targets that their probabilities contradict.

    Args:
        probabilities: (N, K), each row by a model that was not trained on the image; NaN where
            nothing can be said.
        targets: (N, K) float: 1, 0 or NaN.

    Returns:
        Image, label, and how much more probable the opposite is, the largest first.
    """
    cells = []
    for label in range(targets.shape[1]):
        judged = np.flatnonzero(~np.isnan(targets[:, label] + probabilities[:, label]))
        present = probabilities[judged, label]
        both = np.stack([1 - present, present], axis=1)
        for error in find_contradictions(both, targets[judged, label].astype(np.int64)):
            if error.margin > 0:
                cells.append((int(judged[error.position]), label, error.margin))
    return sorted(cells, key=lambda cell: (-cell[2], cell[:2]))


def cross_validate(
    features: NDArray[Any], targets: NDArray[Any], groups: Sequence[object], seed: int
) -> NDArray[Any]:
    """Compute the probabilities of each image by classifiers fitted to the other folds.

    Each is a logistic regression a label on standardised features, all labels fitted at once. Each
    of the five folds holds some of every label, if there are enough images of it; images of one
    group stay in one fold.

    Args:
        features: (N, D) float.
        targets: (N, K) float: 1, 0 or NaN.
        groups: group of each image, such as its content.
        seed: seed of the folds and of the fits.

    Returns:
        (N, K) float64; NaN where a label has no positives or no negatives in the other folds, or
        there are too few images.
    """
    probabilities = np.full(targets.shape, np.nan)
    folds = min(_FOLDS, len(set(groups)))
    if folds < 2:
        return probabilities
    values, known = torch.from_numpy(features), torch.from_numpy(targets)
    chosen = _deal(targets, groups, folds, seed)
    for fold in range(folds):
        held_out = chosen == fold
        if not held_out.any():
            continue
        rest = torch.from_numpy(~held_out)
        weights, biases = fit_logistic(
            values[rest], known[rest], [_PENALTY / int(rest.sum())], seed=seed
        )
        held = (values[~rest] @ weights[0] + biases[0]).numpy()
        counted = targets[~held_out]
        can_say = (counted == 1).any(0) & (counted == 0).any(0)
        probabilities[held_out] = np.where(can_say, sigmoid(held), np.nan)
    return probabilities


def _deal(targets: NDArray[Any], groups: Sequence[object], folds: int, seed: int) -> NDArray[Any]:
    """The fold of each image: groups in random order, those with the rarest labels first, each to
    the fold that has the fewest images of its rarest label.
    """
    present = targets == 1
    size = present.sum(0)
    rarest = np.where(present.any(1), np.where(present, size, np.inf).argmin(1), -1)
    members: dict[object, list[int]] = defaultdict(list)
    for position in np.random.default_rng(seed).permutation(len(targets)).tolist():
        members[groups[position]].append(position)
    counts = np.zeros((folds, targets.shape[1] + 1), dtype=np.int64)
    chosen = np.zeros(len(targets), dtype=np.int64)

    def rank(positions: list[int]) -> float:
        return min(float(size[rarest[i]]) if rarest[i] >= 0 else np.inf for i in positions)

    for positions in sorted(members.values(), key=rank):
        own = min(positions, key=lambda i: rank([i]))
        # Of equally poor folds the smallest.
        fold = int(np.lexsort((counts.sum(1), counts[:, rarest[own]]))[0])
        chosen[positions] = fold
        np.add.at(counts[fold], rarest[positions], 1)
    return chosen
