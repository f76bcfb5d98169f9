"""The loss of a classifier."""

from __future__ import annotations

from torch import Tensor, nn


class CrossEntropy:
    """Cross-entropy, summed over the batch, with label smoothing and class weights.

    A sum, not a mean: divided by the number of images in the whole batch it stays exact when the
    batch is cut into parts for accumulation or over processes.

    Args:
        label_smoothing: fraction of each target that is spread over all classes.
        class_weights: (K,) weight of each class, or None.
    """

    def __init__(self, label_smoothing: float, class_weights: Tensor | None) -> None:
        self._loss = nn.CrossEntropyLoss(
            weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
        )

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The summed loss.

        Args:
            logits: (B, K) float.
            targets: (B,) int64 labels or (B, K) float probabilities.
            images: not used; other losses look at them.
        """
        loss: Tensor = self._loss(logits.float(), targets)
        return loss
