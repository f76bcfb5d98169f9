"""Image files to batches on the device: order, augmentation seeds, workers, normalisation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from mnft.data.decode import decode
from mnft.data.inspection import count_cores
from mnft.data.transforms import Transform, normalize
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing
from mnft.results import BadImage
from mnft.seeding import derive_seed

_PREFETCH = 2


class Key(NamedTuple):
    """Position of an image in the list of paths, and the seed of its random choices, if any."""

    position: int
    seed: int | None


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        images: (B, C, H, W) float32, normalised.
        targets: (B,) int64, or (B, K) float32 after mixup or cutmix.
        positions: of the images, in the list of paths.
        bad: images that could not be decoded, with their positions; not among `images`.
    """

    images: Tensor
    targets: Tensor
    positions: list[int]
    bad: list[tuple[int, BadImage]]


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """How batches come about.

    Attributes:
        device: where they go.
        workers: processes that decode; 0 is the main process.
        channels_last: memory format of the images.
    """

    device: torch.device
    workers: int
    channels_last: bool


class Batches:
    """An iterable of `Batch`, once for each epoch.

    Args:
        paths: image files.
        targets: the label of each; -1 where it has none.
        transform: image to (C, H, W) uint8.
        preprocessing: for the normalisation.
        sampler: gives the keys of each batch.
        options: how batches come about.
        mix: mixup or cutmix.
        allow_bad: give images that cannot be decoded in `Batch.bad` instead of failing.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Sequence[int],
        *,
        transform: Transform,
        preprocessing: Preprocessing,
        sampler: EpochSampler | EvalSampler,
        options: LoaderOptions,
        mix: v2.Transform | None = None,
        allow_bad: bool = False,
    ) -> None:
        self.sampler = sampler
        self._preprocessing = preprocessing
        self._options = options
        self._mix = mix
        self._allow_bad = allow_bad
        self._loader: DataLoader[_RawBatch] = DataLoader(
            _ImageDataset(paths, targets, transform),  # type: ignore[arg-type]
            batch_sampler=sampler,
            num_workers=options.workers,
            collate_fn=_collate,
            pin_memory=options.device.type == "cuda",
            persistent_workers=options.workers > 0,
            prefetch_factor=_PREFETCH if options.workers else None,
            # Without its own generator the loader would draw from the global one, and the
            # number of workers would change what follows.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for raw in self._loader:
            if raw.bad and not self._allow_bad:
                bad = raw.bad[0][1]
                raise DataError(
                    f"{bad.path}: {bad.reason}",
                    hint="it was readable when the run began: has the folder changed?",
                )
            yield self._to_device(raw)

    def _to_device(self, raw: _RawBatch) -> Batch:
        device = self._options.device
        images = raw.images.to(device, non_blocking=True)
        targets = raw.targets.to(device, non_blocking=True)
        if len(images):
            images = normalize(images, self._preprocessing)
            if self._mix is not None:
                with _seeded(raw.seed):
                    images, targets = self._mix(images, targets)
            if self._options.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, targets, raw.positions, raw.bad)


class EpochSampler(Sampler[list[Key]]):
    """The training order: each epoch its own, the same for any number of processes and workers.

    Of every batch of `batch_size` images, process `rank` takes one contiguous part. The last
    batch of an epoch may be smaller; it is left out when it has fewer than two images a process,
    too few for BatchNorm.

    Args:
        num_samples: images in the split.
        batch_size: images in a batch, over all processes.
        seed: with the epoch, decides order and augmentation.
        rank: this process.
        world_size: all processes.
        weights: chance of each image to be drawn, with replacement; None takes each image once.
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
    ) -> None:
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._weights = weights
        self._epoch = 0
        last = num_samples % batch_size
        self._num_batches = num_samples // batch_size + (last >= 2 * world_size)
        if not self._num_batches:
            raise DataError(f"{num_samples} training images are too few for {world_size} processes")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def batch_size_of(self, step: int) -> int:
        """Images in a batch over all processes; `step` counts from 0."""
        return min(self._batch_size, self._num_samples - step * self._batch_size)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, self._epoch))
        if self._weights is None:
            order = torch.randperm(self._num_samples, generator=generator)
        else:
            weights = torch.tensor(self._weights, dtype=torch.float64)
            order = torch.multinomial(weights, self._num_samples, True, generator=generator)
        seeds = torch.randint(2**62, (self._num_samples,), generator=generator)
        keys = [Key(*pair) for pair in zip(order.tolist(), seeds.tolist(), strict=True)]
        for step in range(self._num_batches):
            batch = keys[step * self._batch_size :][: self.batch_size_of(step)]
            share = len(batch) / self._world_size
            yield batch[round(share * self._rank) : round(share * (self._rank + 1))]


class EvalSampler(Sampler[list[Key]]):
    """Every image once, in order; process `rank` of `world_size` takes every so-many-th."""

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


def choose_workers(
    wanted: int | str, *, device: torch.device, batch_bytes: int, processes: int = 1
) -> int:
    """The number of decoding processes for `data.workers`.

    `auto` takes half of the cores, at most four, beside a CPU that trains, and all but one, at
    most eight, beside a GPU; it takes fewer where shared memory, through which batches
    travel, is small (containers often have 64 MB).

    Args:
        wanted: a number, or "auto".
        device: where training runs.
        batch_bytes: size of one uint8 batch.
        processes: training processes on this machine.
    """
    if isinstance(wanted, int):
        return wanted
    cores = count_cores() // processes
    workers = min(8, max(1, cores - 1)) if device.type == "cuda" else min(4, cores // 2)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free // processes
        workers = min(workers, free // (batch_bytes * (_PREFETCH + 2)))
    return workers


class _Raw(NamedTuple):
    key: Key
    target: int
    image: Tensor | BadImage


class _RawBatch(NamedTuple):
    images: Tensor
    targets: Tensor
    positions: list[int]
    bad: list[tuple[int, BadImage]]
    seed: int


class _ImageDataset(Dataset[_Raw]):
    """Decodes and transforms one image; its random choices depend on the key's seed alone."""

    def __init__(self, paths: Sequence[Path], targets: Sequence[int], transform: Transform) -> None:
        self._paths = paths
        self._targets = targets
        self._transform = transform

    def __getitem__(self, key: Key) -> _Raw:
        path = self._paths[key.position]
        try:
            image = decode(path)
        except DataError as error:
            reason = error.message.removeprefix(f"{path}: ")
            return _Raw(key, -1, BadImage(path, reason))
        if key.seed is None:
            return _Raw(key, self._targets[key.position], self._transform(image))
        with _seeded(key.seed):
            return _Raw(key, self._targets[key.position], self._transform(image))


def _collate(items: list[_Raw]) -> _RawBatch:
    good = [item for item in items if isinstance(item.image, Tensor)]
    bad = [(i.key.position, i.image) for i in items if isinstance(i.image, BadImage)]
    images = torch.stack([i.image for i in good if isinstance(i.image, Tensor)]) if good else None
    return _RawBatch(
        images if images is not None else torch.empty(0, dtype=torch.uint8),
        torch.tensor([item.target for item in good]),
        [item.key.position for item in good],
        bad,
        derive_seed(items[0].key.seed or 0),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a while; that of the device is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
