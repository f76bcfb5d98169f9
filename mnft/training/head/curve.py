"""The learning curve of the head: heads fitted to parts of the training images, and their score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnft.data.labels import LabelRules
from mnft.data.manifest import Sample
from mnft.device.ranks.distributed import Ranks
from mnft.errors import DataError
from mnft.reporter import Progress
from mnft.seeding import derive_seed
from mnft.tasks.base import Task
from mnft.tasks.outputs import Features
from mnft.text import count

# Each size is half of the next one, down to so many images a label.
LEAST_PER_LABEL = 5
_MOST_SIZES, _LEAST_SIZES = 7, 3
_DRAWS = 5
# Parts of the val images that are left out in turn, to see how much the figures depend on them.
_PARTS = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Heads that were fitted to as many training images.

    Attributes:
        images: number of training images, the mean over the draws.
        figures: (D,) the task's main figure of the head of each draw, on all val images.
        without_part: (D, G) the same without each of G parts of the val images.
    """

    images: float
    figures: Floats
    without_part: Floats

    def as_record(self) -> dict[str, Any]:
        """The figures as JSON values."""
        several = len(self.figures) > 1
        return {
            "images": self.images,
            "mean": float(self.figures.mean()),
            "sd": float(self.figures.std(ddof=1)) if several else None,
            "figures": self.figures.tolist(),
        }


@dataclass(frozen=True, slots=True)
class HeadImages:
    """Features of images, and which images they are.

    Attributes:
        features: features of N images, with their targets.
        samples: the N images.
    """

    features: Features
    samples: Sequence[Sample]


def compute_curve(
    task: Task,
    rules: LabelRules,
    train: HeadImages,
    val: HeadImages,
    *,
    balanced: bool,
    seed: int,
    device: torch.device,
    on_progress: Progress,
) -> list[CurvePoint]:
    """Fit heads to random parts of the training images, and score them on the val images.

    A part has the labels in the proportions of the whole, and whole groups of images.

    Args:
        task: fits and scores heads.
        rules: what the labels are.
        train: the training images.
        val: the val images.
        balanced: whether rare labels weigh more, as `train.class_weights: balanced` says.
        seed: seed of the draws.
        device: where heads are fitted.
        on_progress: a function that is called with the heads done and all heads.

    Returns:
        The points, the fewest images first; the last is all of them, in one draw.

    Raises:
        DataError: there are too few images.
    """
    sizes = choose_sizes(len(train.samples), len(task.labels), rules)
    _check_each_label(train.samples, rules)
    parts = _deal_parts(val.samples, seed)
    total = 1 + _DRAWS * (len(sizes) - 1)
    points, done = [], 0
    for size in sizes:
        figures, without_part, images = [], [], []
        for draw in range(_DRAWS if size < len(train.samples) else 1):
            chosen = draw_part(train.samples, rules, size, derive_seed(seed, size, draw))
            drawn = Features(train.features.values[chosen], train.features.targets[chosen])
            head = task.fit_head(drawn, val.features, balanced=balanced, seed=seed, device=device)
            outputs = val.features.values @ head.weight.T + head.bias
            whole = torch.arange(len(outputs))
            figures.append(_score(task, outputs, val.features.targets, whole))
            without_part.append(
                [
                    _score(task, outputs, val.features.targets, whole[parts != part])
                    for part in range(parts.max() + 1)
                ]
            )
            images.append(len(chosen))
            done += 1
            on_progress(done, total)
        points.append(CurvePoint(float(np.mean(images)), np.array(figures), np.array(without_part)))
    return points


def choose_sizes(num_images: int, num_labels: int, rules: LabelRules) -> list[int]:
    """Halve the number of images as long as enough are left, fewest first.

    Raises:
        DataError: a curve would have fewer than three points.
    """
    sizes = [
        math.ceil(num_images / 2**halvings)
        for halvings in range(_MOST_SIZES)
        if num_images / 2**halvings >= LEAST_PER_LABEL * num_labels
    ]
    if len(sizes) < _LEAST_SIZES:
        least = LEAST_PER_LABEL * 2 ** (_LEAST_SIZES - 1)
        raise DataError(
            f"found {count(num_images, 'training image')} of "
            f"{count(num_labels, rules.noun, rules.plural)}, expected {least} for each "
            f"{rules.noun} or more: a curve needs {_LEAST_SIZES} sizes, each half of the next",
            hint="with so few images, more will help: collect some, and look again",
        )
    return sizes[::-1]


def draw_part(samples: Sequence[Sample], rules: LabelRules, size: int, seed: int) -> list[int]:
    """Draw images at random, stratified by label, whole groups together.

    Args:
        samples: the images to draw from.
        rules: what the labels are.
        size: number of images that is wanted.
        seed: seed of the draw.

    Returns:
        Their positions; groups make the number differ a little from the one that is wanted.
    """
    if size >= len(samples):
        return list(range(len(samples)))
    units: dict[str, list[int]] = {}  # positions of the images that must stay together
    for position, sample in enumerate(samples):
        units.setdefault(sample.group or sample.sha256, []).append(position)
    names = [rules.parse(sample.label) or ("",) for sample in samples]
    wanted = {
        name: max(1, round(number * size / len(samples)))
        for name, number in Counter(name for of_image in names for name in of_image).items()
    }
    together, drawn = list(units.values()), list[int]()
    found: Counter[str] = Counter()
    for place in np.random.default_rng(seed).permutation(len(units)):
        unit = together[place]
        own = Counter(name for position in unit for name in names[position])
        fits = len(drawn) + len(unit) <= 1.05 * size
        # A group that is too large is taken only for a label that nothing else has brought so far.
        if (any(found[n] < wanted[n] for n in own) and fits) or any(not found[n] for n in own):
            drawn += unit
            found += own
    return sorted(drawn)


def _check_each_label(samples: Sequence[Sample], rules: LabelRules) -> None:
    """Refuse classes of one image, of which no part can be drawn."""
    contents: dict[str, set[str]] = {}
    for sample in samples:
        for name in rules.parse(sample.label):
            contents.setdefault(name, set()).add(sample.sha256)
    if rare := sorted(name for name, found in contents.items() if len(found) < 2):
        raise DataError(
            f"{rules.noun} {rare[0]} has one training image, expected two or more for a curve",
            hint="add images of it, or leave it out with data.exclude",
        )


def _deal_parts(samples: Sequence[Sample], seed: int) -> NDArray[np.int64]:
    """Deal the val images into parts of about one size; a group, or a content, stays whole."""
    units = [sample.group or sample.sha256 for sample in samples]
    images = Counter(units)
    order = np.random.default_rng(seed).permutation(sorted(images)).tolist()
    sizes, places = [0] * min(_PARTS, len(order)), {}
    for unit in sorted(order, key=lambda unit: -images[unit]):
        places[unit] = sizes.index(min(sizes))
        sizes[places[unit]] += images[unit]
    return np.array([places[unit] for unit in units])


def _score(task: Task, outputs: Tensor, targets: Tensor, rows: Tensor) -> float:
    score = task.new_score(Ranks())
    score.update(rows.tolist(), outputs[rows], targets[rows])
    return score.result()[task.figure]
