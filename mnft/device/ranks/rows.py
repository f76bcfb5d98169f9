"""Collect a row of numbers for each image over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnft.device.ranks.distributed import Ranks, gather

# Numbers that stay on the device until they are copied to the host: 256 MiB in float32.
_MOST_KEPT = 1 << 26


class Rows:
    """Collects one row of numbers for each image, and leaves them on the device until the end.

    A copy to the host waits for all work that the device has queued, so there is one copy at the
    end instead of two for each batch.

    Args:
        ranks: processes that share the images.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_kept = 0
        self._copied: list[tuple[Tensor, ...]] = []

    def add(self, positions: Sequence[int], values: Tensor, targets: Tensor) -> None:
        """Add the rows of one batch.

        Args:
            positions: B positions of the images in the list of all images.
            values: (B, D) float.
            targets: (B,) int64 or (B, K) float32.
        """
        self._kept.append((torch.tensor(positions), values, targets))
        self._num_kept += values.numel()
        if self._num_kept >= _MOST_KEPT:
            self._copy()

    def collect(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Copy the rows of all processes to the CPU, in the order of the images.

        Returns:
            Positions (N,) int64, ascending, values (N, D) and targets; None if there
            are no rows at all.
        """
        self._copy()
        parts = [part for own in gather(self._ranks, self._copied) for part in own]
        if not parts:
            return None
        positions, values, targets = (torch.cat(columns) for columns in zip(*parts, strict=True))
        order = positions.argsort()
        return positions[order], values[order], targets[order]

    def _copy(self) -> None:
        if self._kept:
            columns = zip(*self._kept, strict=True)
            self._copied.append(tuple(torch.cat(column).cpu() for column in columns))
            self._kept.clear()
            self._num_kept = 0
