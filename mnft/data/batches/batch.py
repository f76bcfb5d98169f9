"""A batch on the device, whichever way it came there: from files or from the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


@dataclass(frozen=True, slots=True)
class Growth:
    """Progressive resizing: the side of the training images over the epochs.

    Attributes:
        start: share of the whole side in the first epoch.
        epochs: of the training.
    """

    start: float = 1.0
    epochs: int = 1

    def side(self, whole: int, epoch: int) -> int:
        """Side in an epoch (from 1): evenly up to `whole`, which the last third has.

        Below `whole` it is a multiple of 32, the stride of most networks.
        """
        growing = math.ceil(self.epochs * 2 / 3)
        if self.start >= 1 or epoch > growing:
            return whole
        share = self.start + (1 - self.start) * (epoch - 1) / growing
        return min(whole, max(32, 32 * round(whole * share / 32)))


WHOLE = Growth()


class Batches(Protocol):
    """An iterable of `Batch`, once for each epoch."""

    @property
    def sampler(self) -> EpochSampler | EvalSampler:
        """What gives the keys of each batch."""

    @property
    def in_device_memory(self) -> bool:
        """Whether the images lie in the device's memory, so that no step waits for loading."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def finish(
    images: Tensor,
    targets: Tensor,
    preprocessing: Preprocessing,
    *,
    mix: v2.Transform | None,
    seed: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Normalise a batch, and mix it.

    Args:
        images: (B, C, H, W), values 0 to 255, on the device.
        targets: (B,) int64 on the device.
        preprocessing: for the normalisation.
        mix: mixup or cutmix.
        seed: of the mixing.
        channels_last: memory format of the result.
    """
    images = normalize(images, preprocessing)
    if mix is not None:
        with seeded(seed):
            images, targets = mix(images, targets)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout), targets


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a while; that of the device is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
