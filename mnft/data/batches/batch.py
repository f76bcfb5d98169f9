"""A batch on the device, whether its images came from files or from the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torchvision.transforms import v2

from mnft.data.batches.samplers import EpochSampler, EvalSampler
from mnft.data.decode import BadImage
from mnft.data.transforms import normalize
from mnft.preprocessing import Preprocessing


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        images: (B, C, H, W) float32, normalised.
        targets: (B,) int64, or (B, K) float32 after mixup or cutmix.
        positions: position of each image in the list of paths.
        bad: images that could not be decoded, with their positions; not among `images`.
    """

    images: Tensor
    targets: Tensor
    positions: list[int]
    bad: list[tuple[int, BadImage]]


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """Where batches are made, and where they go.

    Attributes:
        device: the device that receives them.
        workers: number of processes that decode; 0 decodes in the main process.
        channels_last: whether images take the channels-last memory format.
    """

    device: torch.device
    workers: int
    channels_last: bool


@dataclass(frozen=True, slots=True)
class ProgressiveResize:
    """Progressive resizing: the side of the training images over the epochs.

    Attributes:
        start: fraction of the full side in the first epoch.
        epochs: number of epochs of the training.
    """

    start: float = 1.0
    epochs: int = 1

    def side(self, full: int, epoch: int) -> int:
        """The side in an epoch (from 1): it grows evenly, and is `full` in the last third.

        Below `full` it is a multiple of 32, the stride of most networks.
        """
        growing = math.ceil(self.epochs * 2 / 3)
        if self.start >= 1 or epoch > growing:
            return full
        fraction = self.start + (1 - self.start) * (epoch - 1) / growing
        return min(full, max(32, 32 * round(full * fraction / 32)))


FULL_SIZE = ProgressiveResize()


AnySampler = TypeVar("AnySampler", bound=EpochSampler | EvalSampler)


class Batches(Protocol):
    """An iterable of `Batch`, once for each epoch."""

    @property
    def in_device_memory(self) -> bool:
        """Whether the images lie in the device's memory, so that no step waits for loading."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class TrainBatches(Batches, Protocol):
    """Batches for training: each epoch has its own order."""

    @property
    def sampler(self) -> EpochSampler:
        """The order; `sampler.set_epoch` chooses the epoch that the next iteration gives."""


def normalize_and_mix(
    images: Tensor,
    targets: Tensor,
    preprocessing: Preprocessing,
    *,
    mix: v2.Transform | None,
    seed: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Normalise a batch, and apply mixup or cutmix.

    Args:
        images: (B, C, H, W), values 0 to 255, on the device.
        targets: (B,) int64 on the device.
        preprocessing: mean and std.
        mix: mixup or cutmix; None leaves images and targets as they are.
        seed: seed of the mixing.
        channels_last: whether the result takes the channels-last memory format.

    Returns:
        (B, C, H, W) float32, and (B,) int64 or, mixed, (B, K) float32.
    """
    images = normalize(images, preprocessing)
    if mix is not None:
        with seeded(seed):
            images, targets = mix(images, targets)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout), targets


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block; the generator of the device stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
