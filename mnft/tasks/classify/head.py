"""The loss of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class CrossEntropy:
    """Cross-entropy, summed over the batch, with label smoothing and class weights.

    A sum, not a mean: divided by the number of images in the whole batch it stays exact when the
    batch is cut into parts for accumulation or over processes.

    Args:
        label_smoothing: fraction of each target that is spread over all classes.
        class_weights: (K,) weight of each class, or None.
    """

    def __init__(self, label_smoothing: float, class_weights: Tensor | None) -> None:
        self._smoothing = label_smoothing
        self._class_weights = class_weights

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The summed loss.

        Args:
            logits: (B, K) float.
            targets: (B,) int64 labels or (B, K) float probabilities; images whose target is
                NO_CLASS or NaN add nothing.
            images: not used; other losses look at them.
        """
        smoothing = self._smoothing
        if targets.ndim == 2:
            # Smoothed here, as torch does it: there is nothing to smooth in targets of zeros, whose
            # loss is 0, and it would make them targets.
            smooth = targets * (1 - smoothing) + smoothing / targets.shape[1]
            targets = torch.where(targets.isnan(), 0.0, smooth)
            smoothing = 0.0
        return F.cross_entropy(
            logits.float(),
            targets,
            weight=self._class_weights,
            label_smoothing=smoothing,
            reduction="sum",
        )
