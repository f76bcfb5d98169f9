"""Batches from the store: cropped, flipped and coloured as whole batches, without processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig
from mnft.data.batches import WHOLE, Batch, Growth, finish
from mnft.data.draws import Draws, draw, draw_centre
from mnft.data.resample import DeviceImages, adjust, resample_on_cpu, resample_on_device
from mnft.data.samplers import EpochSampler, EvalSampler, Key
from mnft.data.store import StoredImages
from mnft.preprocessing import Preprocessing
from mnft.seeding import derive_seed

# Of a GPU's free memory, what the images may take; the rest is for the model's activations.
_DEVICE_SHARE = 0.4


def fits_on_device(stored: Sequence[StoredImages], device: torch.device) -> bool:
    """Whether the images fit in a share of the free memory of a GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(int(s.sizes.prod(axis=1).sum()) * s.channels for s in stored)
    return needed < _DEVICE_SHARE * free


class StoredBatches:
    """An iterable of `Batch`, once for each epoch; like `LoadedBatches`, from stored images.

    On a GPU the images lie in its memory and all work is done there, on whole batches. On the CPU
    threads share the images of a batch.

    Args:
        images: on the disk, mapped, or on the device.
        targets: the label of each.
        preprocessing: for size and normalisation.
        sampler: gives the keys of each batch.
        device: where batches go.
        channels_last: memory format of the images.
        augment: how images are varied; None takes them as they are, "centre" the middle crop of
            images that are kept whole.
        mix: mixup or cutmix.
        growth: progressive resizing.
    """

    def __init__(
        self,
        images: StoredImages | DeviceImages,
        targets: Sequence[int],
        *,
        preprocessing: Preprocessing,
        sampler: EpochSampler | EvalSampler,
        device: torch.device,
        channels_last: bool,
        augment: AugmentConfig | Literal["centre"] | None = None,
        mix: v2.Transform | None = None,
        growth: Growth = WHOLE,
    ) -> None:
        self.sampler = sampler
        self._images = images
        self._targets = torch.tensor(targets)
        self._preprocessing = preprocessing
        self._device = device
        self._channels_last = channels_last
        self._augment = augment
        self._mix = mix
        self._growth = growth
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        threads = torch.get_num_threads()
        if threads > 1 and not isinstance(self._images, DeviceImages):
            self._pool = self._pool or ThreadPoolExecutor(threads)
        for keys in self.sampler:
            yield self._batch(keys)

    def _batch(self, keys: list[Key]) -> Batch:
        positions = [key.position for key in keys]
        pixels = self._take(positions) if self._augment is None else self._vary(keys, self._augment)
        targets = self._targets[positions].to(self._device, non_blocking=True)
        images, targets = finish(
            pixels.to(self._device, non_blocking=True),
            targets,
            self._preprocessing,
            mix=self._mix,
            seed=derive_seed(keys[0].seed or 0),
            channels_last=self._channels_last,
        )
        return Batch(images, targets, positions, [])

    def _take(self, positions: list[int]) -> Tensor:
        """(B, C, H, W) uint8, as stored."""
        if isinstance(self._images, DeviceImages):
            height, width = (int(side) for side in self._images.sizes[0])
            box = torch.tensor([[0, 0, height, width]], device=self._device)
            images = self._images.take(positions, box.expand(len(positions), 4), height, width)
            return images.permute(0, 3, 1, 2)
        stacked = np.stack([self._images[position] for position in positions])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2)

    def _vary(self, keys: list[Key], augment: AugmentConfig | Literal["centre"]) -> Tensor:
        """(B, C, side, side), values 0 to 255, cropped and varied."""
        positions = [key.position for key in keys]
        sizes = self._images.sizes[positions]
        if augment == "centre":
            _, height, width = self._preprocessing.input_size
            draws = draw_centre(sizes, self._preprocessing.crop_pct, width / height)
            return self._resample(positions, draws, (height, width))
        draws = draw([key.seed or 0 for key in keys], sizes, augment)
        images = self._resample(positions, draws, self._size())
        return adjust(images, draws, self._preprocessing.mean, jitter=augment.color_jitter > 0)

    def _resample(self, positions: list[int], draws: Draws, size: tuple[int, int]) -> Tensor:
        how = self._preprocessing.interpolation
        if isinstance(self._images, DeviceImages):
            return resample_on_device(self._images, positions, draws, size, how, self._device)
        chosen = [self._images[position] for position in positions]
        return resample_on_cpu(chosen, draws, size, how, self._pool)

    def _size(self) -> tuple[int, int]:
        _, height, width = self._preprocessing.input_size
        assert isinstance(self.sampler, EpochSampler)
        epoch = self.sampler.epoch
        return self._growth.side(height, epoch), self._growth.side(width, epoch)
