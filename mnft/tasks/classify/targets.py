"""Labels of one class an image: their numbers, their weights, mixing, and counting hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig
from mnft.data.manifest import Sample
from mnft.errors import DataError


def compute_balanced_weights(labels: Sequence[int], num_classes: int) -> list[float]:
    """Weight of each class inverse to its number of images; their mean over the images is 1.

    Args:
        labels: class of each image, in [0, num_classes); every class has images.
        num_classes: classes in all.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return [len(labels) / (num_classes * count) for count in counts.tolist()]


def encode(samples: Sequence[Sample], class_names: tuple[str, ...]) -> list[int]:
    """Give each sample the number of its class: the position of its name in `class_names`.

    Raises:
        DataError: the model does not know a class.
    """
    labels = {name: place for place, name in enumerate(class_names)}
    if unknown := sorted({sample.label for sample in samples} - set(labels)):
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise DataError(
            f"the split has classes that the model does not know: {', '.join(unknown[:10])}{more}",
            hint="the class names of the model, or split.json, were changed after the training: "
            "restore them from a copy",
        )
    return [labels[sample.label] for sample in samples]


def weigh(samples: Sequence[Sample], class_names: tuple[str, ...]) -> list[float]:
    """Give each sample the weight of its class, for `train.sampler: balanced`."""
    targets = encode(samples, class_names)
    per_class = compute_balanced_weights(targets, len(class_names))
    return [per_class[target] for target in targets]


def build_mix(augment: AugmentConfig, num_classes: int) -> v2.Transform | None:
    """Mixup and cutmix on a batch (images float, targets int) -> (images, (B, K) float targets)."""
    mixes: list[v2.Transform] = []
    if augment.mixup:
        mixes.append(v2.MixUp(alpha=augment.mixup, num_classes=num_classes))
    if augment.cutmix:
        mixes.append(v2.CutMix(alpha=augment.cutmix, num_classes=num_classes))
    if not mixes:
        return None
    return mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)


def count_correct(
    loss: Tensor, logits: Tensor, targets: Tensor, other: int | None = None
) -> Tensor:
    """The running sums that a batch adds to, left on the device: reading them waits for it.

    Args:
        loss: scalar, summed over the images.
        logits: (B, C).
        targets: (B,) int64 labels, or (B, C) float probabilities of mixed images.
        other: the output for images of none of the classes, or None.

    Returns:
        (2,) float: summed loss, and the number of images whose class is right; with `other`, the
        accuracy on the images that have a class, times B.
    """
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    correct = logits.argmax(1) == labels
    if other is None:
        return torch.stack([loss.detach(), correct.sum().float()])
    known = labels != other
    accuracy = (correct & known).sum() / known.sum().clamp_min(1)
    return torch.stack([loss.detach(), accuracy * len(labels)])
