"""Labels of one class an image: their numbers, their weights, mixing, and counting hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig
from mnft.data.manifest import Sample
from mnft.errors import DataError

# The target of an image whose class nobody knows: what torch's cross-entropy passes over.
NO_CLASS = -100


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
    """Mixup and cutmix on a batch (images float, targets int) -> (images, (B, K) float targets).

    The target is NaN for all classes where that of either image is not known.
    """
    mixes: list[v2.Transform] = []
    if augment.mixup:
        mixes.append(v2.MixUp(alpha=augment.mixup, num_classes=num_classes))
    if augment.cutmix:
        mixes.append(v2.CutMix(alpha=augment.cutmix, num_classes=num_classes))
    if not mixes:
        return None
    mix = mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)
    return v2.Compose([_AsProbabilities(num_classes), mix])


class _AsProbabilities(nn.Module):
    """Numbers of classes to probabilities, before images are mixed; others stay as they are."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._num_classes = num_classes

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if targets.ndim == 2:
            return images, targets
        certain = F.one_hot(targets.clamp(min=0), self._num_classes).float()
        return images, certain.masked_fill((targets == NO_CLASS)[:, None], float("nan"))


def count_correct(
    loss: Tensor, logits: Tensor, targets: Tensor, other: int | None = None
) -> Tensor:
    """The running sums that a batch adds to, left on the device: reading them waits for it.

    Args:
        loss: scalar, summed over the images.
        logits: (B, C).
        targets: (B,) int64 labels, or (B, C) float probabilities of mixed images; NO_CLASS or NaN
            where the class is not known.
        other: the output for images of none of the classes, which are not judged; None without it.

    Returns:
        (3,) float: summed loss, the number of images whose class is right, and the number of those
        that are judged.
    """
    mixed = targets.ndim == 2
    known = ~targets.isnan().any(1) if mixed else targets != NO_CLASS
    labels = targets.argmax(1) if mixed else targets
    if other is not None:
        known &= labels != other
    correct = (logits.argmax(1) == labels) & known
    return torch.stack([loss.detach(), correct.sum().float(), known.sum().float()])
