"""The order of images: shuffled epochs for training, everything once for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from mnft.errors import DataError
from mnft.seeding import derive_seed


class Key(NamedTuple):
    """Position of an image in the list of paths, and the seed of its random choices, if any."""

    position: int
    seed: int | None


class EpochSampler(Sampler[list[Key]]):
    """The training order: each epoch its own, the same for any number of processes and workers.

    Of every batch of `batch_size` images, process `rank` takes one contiguous part. The last
    batch of an epoch may be smaller; it is left out when it has fewer than two images a process,
    too few for BatchNorm.

    Args:
        num_samples: images in the split.
        batch_size: images in a batch, over all processes.
        seed: seed of order and augmentation; each epoch derives its own from it.
        rank: this process.
        world_size: all processes.
        weights: relative chance of each image, drawn with replacement; None takes each image once
            a pass.
        passes: passes over the images in an epoch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
        passes: int = 1,
    ) -> None:
        self._num_samples = num_samples
        self._num_drawn = num_samples * passes
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._weights = weights
        self._epoch = 0
        self._done = 0
        last = self._num_drawn % batch_size
        self._num_batches = self._num_drawn // batch_size + (last >= 2 * world_size)
        if not self._num_batches:
            raise DataError(f"{num_samples} training images are too few for {world_size} processes")

    @property
    def epoch(self) -> int:
        """The epoch whose order the next iteration gives."""
        return self._epoch

    def set_epoch(self, epoch: int, *, done: int = 0) -> None:
        """Choose that epoch, without its first `done` batches."""
        self._epoch = epoch
        self._done = done

    def batch_size_of(self, step: int) -> int:
        """Images in a batch over all processes; `step` counts from 0."""
        return min(self._batch_size, self._num_drawn - step * self._batch_size)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, self._epoch))
        if self._weights is None:
            passes = range(self._num_drawn // self._num_samples)
            order = torch.cat(
                [torch.randperm(self._num_samples, generator=generator) for _ in passes]
            )
        else:
            weights = torch.tensor(self._weights, dtype=torch.float64)
            order = torch.multinomial(weights, self._num_drawn, True, generator=generator)
        seeds = torch.randint(2**62, (self._num_drawn,), generator=generator)
        keys = [Key(*pair) for pair in zip(order.tolist(), seeds.tolist(), strict=True)]
        for step in range(self._done, self._num_batches):
            batch = keys[step * self._batch_size :][: self.batch_size_of(step)]
            share = len(batch) / self._world_size
            yield batch[round(share * self._rank) : round(share * (self._rank + 1))]


class EvalSampler(Sampler[list[Key]]):
    """Every image once, in order; process `rank` of `world_size` takes every `world_size`-th."""

    epoch = 0  # every pass is the same

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self._indices = range(rank, num_samples, world_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self._indices), self._batch_size):
            yield [Key(i, None) for i in self._indices[start : start + self._batch_size]]
