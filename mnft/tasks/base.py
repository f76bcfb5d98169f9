"""What every task gives: outputs of a model, and a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from mnft.data.decode import BadImage


class Loss(Protocol):
    """What the training loop minimises."""

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The loss summed over the batch, a scalar.

        Args:
            logits: (B, K) float, unnormalised, of the model that learns.
            targets: (B,) int64 labels or (B, K) float probabilities.
            images: (B, C, H, W) float, normalised: what the logits were computed from.
        """


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model said of each image.

    Attributes:
        positions: (N,) int64, ascending: positions of the images in the list of paths.
        logits: (N, K) float32.
        targets: (N,) int64.
        bad: images that could not be decoded, by position.
    """

    positions: NDArray[Any]
    logits: NDArray[Any]
    targets: NDArray[Any]
    bad: dict[int, BadImage]
