"""What an epoch of training has come to so far: sums, updates and seconds."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from mnft.engine.state import PartialEpoch


class Tally:
    """What an epoch has come to so far.

    Attributes:
        totals: (3,) summed loss, correct answers, images, on the device: reading them waits for it.
        updates: done.
        lr: the learning rate that the epoch began with.
        waited: seconds until batches were there.
    """

    def __init__(self, begun: PartialEpoch | None, device: torch.device, lr: float) -> None:
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no double
        sums = begun.totals if begun else (0.0, 0.0, 0.0)
        self.totals = torch.tensor(sums, device=device, dtype=self._dtype)
        self.updates = begun.updates if begun else 0
        self.lr = begun.lr if begun else lr
        self.waited = begun.waited if begun else 0.0
        self._started = time.perf_counter() - (begun.seconds if begun else 0.0)

    @property
    def seconds(self) -> float:
        """Since the epoch's beginning, without those between a stop and its resumption."""
        return time.perf_counter() - self._started

    def add(self, counts: Tensor) -> None:
        """Count one update."""
        self.totals += counts.to(self._dtype)
        self.updates += 1

    def describe(self, epoch: int, accumulation_steps: int) -> PartialEpoch:
        """To be saved."""
        loss, correct, images = self.totals.tolist()
        return PartialEpoch(
            epoch=epoch,
            updates=self.updates,
            lr=self.lr,
            totals=(loss, correct, images),
            seconds=self.seconds,
            waited=self.waited,
            accumulation_steps=accumulation_steps,
        )
