"""Batches from the store: cropped, flipped and coloured as whole batches, without processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torchvision.transforms import v2

from mnft.data.batches.augment import Augment, Draws, Ints, draw_for
from mnft.data.batches.batch import WHOLE, Batch, Growth, finish
from mnft.data.batches.raw import size_of, vary
from mnft.data.batches.resample import DeviceImages, adjust, resample_on_device
from mnft.data.batches.samplers import EpochSampler, EvalSampler, Key
from mnft.data.store.store import StoredImages
from mnft.preprocessing import Preprocessing
from mnft.seeding import derive_seed

# Of a GPU's free memory, what the images may take; the rest is for the model's activations.
_DEVICE_SHARE = 0.4
# Images whose random choices are copied to a GPU at once: 7 MB.
_IMAGES_A_COPY = 65_536


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
        augment: Augment = None,
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
        return vary(pixels, keys, self._size(), self._augment, self._preprocessing, self._pool)

    def _batches_on_device(self, stored: DeviceImages) -> Iterator[Batch]:
        """The batches of an epoch without a wait for the device in any of them.

        A copy from the host to a GPU waits until the GPU has done all that it was given before, so
        everything that is drawn goes up at once for the whole epoch (for every 65,536 images of a
        long one), and a batch slices what it needs.
        """
        for batches in _spans(self.sampler):
            tensors, longest = self._plan(stored.sizes, batches)
            positions, targets, *choices = _upload(tensors, self._device)
            draws = Draws(*choices)
            start = 0
            for batch, (height, width) in zip(batches, longest, strict=True):
                part = slice(start, start + len(batch))
                start += len(batch)
                if self._augment is None:
                    boxes = draws.boxes[part]
                    images = stored.take(positions[part], boxes, height, width).permute(0, 3, 1, 2)
                else:
                    images = resample_on_device(
                        stored,
                        positions[part],
                        draws[part],
                        self._size(),
                        self._preprocessing.interpolation,
                        longest=(height, width),
                    )
                    images = adjust(images, draws[part], self._augment, self._preprocessing.mean)
                yield self._finish(images, targets[part], batch)

    def _plan(
        self, sizes: Ints, batches: list[list[Key]]
    ) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """Positions, targets and choices of all images; height and width of each batch's crops.

        The host must know the largest crop of a batch, and reading it from a GPU would be a wait.
        """
        keys = [key for batch in batches for key in batch]
        positions = [key.position for key in keys]
        seeds = [key.seed or 0 for key in keys]
        draws = draw_for(self._augment, seeds, sizes[positions], self._preprocessing)
        sides = torch.split(draws.boxes[:, 2:], [len(batch) for batch in batches])
        longest = [(int(h), int(w)) for h, w in (part.amax(0).tolist() for part in sides)]
        return [torch.tensor(positions), self._targets[positions], *draws.parts], longest

    def _finish(self, images: Tensor, targets: Tensor, keys: list[Key]) -> Batch:
        images, targets = finish(
            images,
            targets,
            self._preprocessing,
            mix=self._mix,
            seed=derive_seed(keys[0].seed or 0),
            channels_last=self._channels_last,
        )
        return Batch(images, targets, [key.position for key in keys], [])

    def _size(self) -> tuple[int, int]:
        return size_of(self.sampler, self._preprocessing, self._growth)


def _spans(batches: Iterable[list[Key]]) -> Iterator[list[list[Key]]]:
    """The batches in lists of at most `_IMAGES_A_COPY` images, or one batch."""
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
    """The same tensors, of N rows each, on a device, by one copy.

    They travel as float64, which holds whole numbers up to 2^53 exactly.
    """
    columns = [tensor.reshape(len(tensor), -1) for tensor in tensors]
    packed = torch.cat([column.double() for column in columns], dim=1).to(device)
    parts = torch.split(packed, [column.shape[1] for column in columns], dim=1)
    return [
        part.to(tensor.dtype).reshape(tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
