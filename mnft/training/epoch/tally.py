"""What an epoch of training has come to so far: sums, updates and seconds."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from mnft.training.state import PartialEpoch


class Tally:
    """What an epoch has come to so far.

    Attributes:
        sums: (2,) summed loss and correct answers, on the device: reading them waits for it.
        images: the number of images so far, in this process.
        updates: the number of updates so far.
        lr: the learning rate that the epoch began with.
        waited: seconds until batches were there.
    """

    def __init__(self, begun: PartialEpoch | None, device: torch.device, lr: float) -> None:
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no double
        *sums, images = begun.totals if begun else (0.0, 0.0, 0.0)
        self.sums = torch.tensor(sums, device=device, dtype=self._dtype)
        self.images = int(images)
        self.updates = begun.updates if begun else 0
        self.lr = begun.lr if begun else lr
        self.waited = begun.waited if begun else 0.0
        self._started = time.perf_counter() - (begun.seconds if begun else 0.0)

    @property
    def seconds(self) -> float:
        """Since the epoch's beginning, without those between a stop and its resumption."""
        return time.perf_counter() - self._started

    def add(self, sums: Tensor, images: int) -> None:
        """Count one update, without waiting for the device.

        Args:
            sums: (2,) summed loss and correct answers, on the device.
            images: the number of images of this process.
        """
        self.sums += sums.to(self._dtype)
        self.images += images
        self.updates += 1

    def describe(self, epoch: int, accumulation_steps: int) -> PartialEpoch:
        """To be saved."""
        loss, correct = self.sums.tolist()
        return PartialEpoch(
            epoch=epoch,
            updates=self.updates,
            lr=self.lr,
            totals=(loss, correct, float(self.images)),
            seconds=self.seconds,
            waited=self.waited,
            accumulation_steps=accumulation_steps,
        )
