"""Batches from the store: cropped, flipped and coloured as whole batches, without workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic

import torch
from torch import Tensor
from torchvision.transforms import v2

from mnft.data.batches.augment import Augment, AugmentParams, Ints, choose_params
from mnft.data.batches.batch import (
    FULL_SIZE,
    AnySampler,
    Batch,
    ProgressiveResize,
    normalize_and_mix,
)
from mnft.data.batches.raw import size_of, vary
from mnft.data.batches.resample import DeviceImages, adjust, resample_on_device
from mnft.data.batches.samplers import Key
from mnft.data.store.store import StoredImages
from mnft.preprocessing import Preprocessing
from mnft.seeding import derive_seed

# The fraction of a GPU's free memory that images may take; activations need the rest.
_DEVICE_FRACTION = 0.4
# Images whose random choices are copied to a GPU at once: 7 MB.
_IMAGES_A_COPY = 65_536


def fits_on_device(stored: Sequence[StoredImages], device: torch.device) -> bool:
    """Whether the images fit into a fraction of the free memory of a GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(int(s.sizes.prod(axis=1).sum()) * s.channels for s in stored)
    return needed < _DEVICE_FRACTION * free


class StoredBatches(Generic[AnySampler]):
    """An iterable of `Batch`, once for each epoch; like `LoadedBatches`, from stored images.

    On a GPU the images lie in its memory and all work is done there, on whole batches. On the CPU
    threads share the images of a batch.

    Args:
        images: stored images, in a mapped file or on the device.
        targets: the label of each image.
        preprocessing: size and normalisation.
        sampler: the order; it gives the keys of each batch.
        device: the device that receives the batches.
        channels_last: whether images take the channels-last memory format.
        augment: how images are varied; None takes them as they are, "centre" what evaluation sees
            of images that are stored whole. On a device that must be a part of the image.
        mix: mixup or cutmix, or None.
        resize: progressive resizing.
    """

    def __init__(
        self,
        images: StoredImages | DeviceImages,
        targets: Sequence[int],
        *,
        preprocessing: Preprocessing,
        sampler: AnySampler,
        device: torch.device,
        channels_last: bool,
        augment: Augment = None,
        mix: v2.Transform | None = None,
        resize: ProgressiveResize = FULL_SIZE,
    ) -> None:
        self.sampler = sampler
        self._images = images
        self._targets = torch.tensor(targets)
        self._preprocessing = preprocessing
        self._device = device
        self._channels_last = channels_last
        self._augment = augment
        self._mix = mix
        self._resize = resize
        self._pool: ThreadPoolExecutor | None = None

    @property
    def in_device_memory(self) -> bool:
        """Whether the images lie in the device's memory, so that no step waits for loading."""
        return isinstance(self._images, DeviceImages)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self._images, DeviceImages):
            yield from self._batches_on_device(self._images)
            return
        if (threads := torch.get_num_threads()) > 1:
            self._pool = self._pool or ThreadPoolExecutor(threads)
        for keys in self.sampler:
            positions = [key.position for key in keys]
            targets = self._targets[positions].to(self._device, non_blocking=True)
            pixels = self._take(self._images, keys).to(self._device, non_blocking=True)
            yield self._finish(pixels, targets, keys)

    def _take(self, stored: StoredImages, keys: list[Key]) -> Tensor:
        """(B, C, H, W) uint8 on the CPU, cropped and varied."""
        pixels = [stored[key.position] for key in keys]
        size = size_of(self.sampler, self._preprocessing, self._resize)
        return vary(pixels, keys, size, self._augment, self._preprocessing, self._pool)

    def _batches_on_device(self, stored: DeviceImages) -> Iterator[Batch]:
        """The batches of an epoch, made without waiting for the device.

        A copy from the host to a GPU waits until the GPU has done all that it was given before.
        So the random choices of the whole epoch are copied at once (in a long epoch, those of
        65,536 images at a time), and each batch takes a slice of them.
        """
        size = size_of(self.sampler, self._preprocessing, self._resize)
        for batches in _spans(self.sampler):
            tensors, longest = self._plan(stored.sizes, batches)
            positions, targets, *choices = _upload(tensors, self._device)
            params = AugmentParams(*choices)
            start = 0
            for batch, (height, width) in zip(batches, longest, strict=True):
                part = slice(start, start + len(batch))
                start += len(batch)
                if self._augment is None:
                    boxes = params.boxes[part]
                    images = stored.take(positions[part], boxes, height, width).permute(0, 3, 1, 2)
                else:
                    images = resample_on_device(
                        stored,
                        positions[part],
                        params[part],
                        size,
                        self._preprocessing.interpolation,
                        longest=(height, width),
                    )
                    images = adjust(images, params[part], self._augment, self._preprocessing.mean)
                yield self._finish(images, targets[part], batch)

    def _plan(
        self, sizes: Ints, batches: list[list[Key]]
    ) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """Positions, targets and choices of all images; largest height and width in each batch.

        The host must know the largest crop of a batch, and would wait for a GPU to read it there.
        """
        keys = [key for batch in batches for key in batch]
        positions = [key.position for key in keys]
        seeds = [key.seed or 0 for key in keys]
        params = choose_params(self._augment, seeds, sizes[positions], self._preprocessing)
        sides = torch.split(params.boxes[:, 2:], [len(batch) for batch in batches])
        longest = [(int(h), int(w)) for h, w in (part.amax(0).tolist() for part in sides)]
        return [torch.tensor(positions), self._targets[positions], *params.parts], longest

    def _finish(self, images: Tensor, targets: Tensor, keys: list[Key]) -> Batch:
        images, targets = normalize_and_mix(
            images,
            targets,
            self._preprocessing,
            mix=self._mix,
            seed=derive_seed(keys[0].seed or 0),
            channels_last=self._channels_last,
        )
        return Batch(images, targets, [key.position for key in keys], [])


def _spans(batches: Iterable[list[Key]]) -> Iterator[list[list[Key]]]:
    """Group batches into lists of at most `_IMAGES_A_COPY` images, or of one batch."""
    span: list[list[Key]] = []
    images = 0
    for batch in batches:
        if span and images + len(batch) > _IMAGES_A_COPY:
            yield span
            span, images = [], 0
        span.append(batch)
        images += len(batch)
    if span:
        yield span


def _upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors of N rows each to a device, in one copy.

    They travel as float64, which holds whole numbers up to 2^53 exactly.
    """
    columns = [tensor.reshape(len(tensor), -1) for tensor in tensors]
    packed = torch.cat([column.double() for column in columns], dim=1).to(device)
    parts = torch.split(packed, [column.shape[1] for column in columns], dim=1)
    return [
        part.to(tensor.dtype).reshape(tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
