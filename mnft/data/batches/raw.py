"""What worker processes make: whole batches of uint8 images, from files or from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mnft.config.schema import AugmentConfig
from mnft.data.batches.augment import Augment, choose_params
from mnft.data.batches.batch import ProgressiveResize, seeded
from mnft.data.batches.resample import adjust, resample_on_cpu
from mnft.data.batches.samplers import EpochSampler, EvalSampler, Key
from mnft.data.corruptions import vary_as_device
from mnft.data.decode import BadImage, read_content
from mnft.data.store.geometry import Pixels
from mnft.data.store.store import Geometry, StoredImages
from mnft.data.transforms import Transform, build_eval_transform
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing
from mnft.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Images by position, like `StoredImages`: each request decodes what the store would keep.

    Attributes:
        paths: the image files.
        geometry: how they are decoded.
        sums: SHA-256 that the content of each file must have; None where it is not known.
    """

    paths: Sequence[Path]
    geometry: Geometry
    sums: Sequence[str] | None = None

    def __getitem__(self, position: int) -> Pixels:
        """One image, (H, W, C) uint8.

        Raises:
            DataError: the file cannot be read or decoded, or has changed; the message does not
                name it.
        """
        sha256 = self.sums[position] if self.sums else None
        return self.geometry.decode(read_content(self.paths[position], sha256=sha256))


def size_of(
    sampler: EpochSampler | EvalSampler, preprocessing: Preprocessing, resize: ProgressiveResize
) -> tuple[int, int]:
    """Height and width of the images of an epoch."""
    _, height, width = preprocessing.input_size
    return resize.side(height, sampler.epoch), resize.side(width, sampler.epoch)


def vary(
    pixels: Sequence[Pixels],
    keys: Sequence[Key],
    size: tuple[int, int],
    augment: Augment,
    preprocessing: Preprocessing,
    pool: ThreadPoolExecutor | None = None,
) -> Tensor:
    """Crop, flip, resize, colour and corrupt the images of a batch on the CPU.

    Args:
        pixels: B arrays (H, W, C) uint8; all of one size where `augment` is None.
        keys: the key of each image, with the seed of its random choices.
        size: height and width of the result, unless `augment` is None.
        augment: how images are varied.
        preprocessing: what the model sees in evaluation.
        pool: threads that share the images of the batch; None uses the current thread.

    Returns:
        (B, C, H, W) uint8.
    """
    if augment is None:
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    if augment == "centre" and not preprocessing.is_part_of_image:
        return _see_whole(pixels, preprocessing, pool)
    sizes = np.array([image.shape[:2] for image in pixels])
    params = choose_params(augment, [key.seed or 0 for key in keys], sizes, preprocessing)
    images = resample_on_cpu(pixels, params, size, preprocessing.interpolation, pool)
    images = adjust(images, params, augment, preprocessing.mean)
    if isinstance(augment, AugmentConfig) and (probability := augment.device):
        arrays = [np.ascontiguousarray(array) for array in images.permute(0, 2, 3, 1).numpy()]
        seeds = [key.seed or 0 for key in keys]
        run = map if pool is None else pool.map
        varied = list(run(vary_as_device, arrays, repeat(probability), seeds))
        images = torch.from_numpy(np.stack(varied)).permute(0, 3, 1, 2)
    return images


def _see_whole(
    pixels: Sequence[Pixels], preprocessing: Preprocessing, pool: ThreadPoolExecutor | None
) -> Tensor:
    """Bring stored images to the size of the input as evaluation does, squashed or bordered."""
    transform = build_eval_transform(preprocessing)

    def see(image: Pixels) -> Tensor:
        return transform(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image))

    return torch.stack(list(map(see, pixels) if pool is None else pool.map(see, pixels)))


class Request(NamedTuple):
    """What a worker process is asked for: it does not know the epoch, which decides the size."""

    keys: list[Key]
    size: tuple[int, int]


class RawBatch(NamedTuple):
    """A batch before the device: (B, C, H, W) uint8 images, and the seed of their mixing."""

    images: Tensor
    targets: Tensor
    positions: list[int]
    bad: list[tuple[int, BadImage]]
    seed: int


class Requests(Sampler[Request]):
    """The batches of a sampler as requests."""

    def __init__(
        self,
        sampler: EpochSampler | EvalSampler,
        preprocessing: Preprocessing,
        resize: ProgressiveResize,
    ) -> None:
        self._sampler = sampler
        self._preprocessing = preprocessing
        self._resize = resize

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Request]:
        size = size_of(self._sampler, self._preprocessing, self._resize)
        for keys in self._sampler:
            yield Request(keys, size)


class BatchDataset(Dataset[RawBatch]):
    """Makes whole batches; the random choices of an image depend only on the seed in its key."""

    def __init__(
        self,
        images: StoredImages | DecodedImages,
        targets: Sequence[int],
        preprocessing: Preprocessing,
        augment: Augment,
        transform: Transform | None,
    ) -> None:
        self._images = images
        self._targets = targets
        self._preprocessing = preprocessing
        self._augment = augment
        self._transform = transform

    def __getitems__(self, request: Request) -> RawBatch:
        """Called by torch's loader with what its batch sampler gives."""
        keys: list[Key] = []
        pixels: list[Pixels] = []
        bad: list[tuple[int, BadImage]] = []
        for key in request.keys:
            try:
                pixels.append(self._images[key.position])
                keys.append(key)
            except DataError as error:
                if isinstance(self._images, StoredImages):
                    raise  # of the whole store
                path = self._images.paths[key.position]
                bad.append((key.position, BadImage(path, error.message)))
        if not keys:
            images = torch.empty(0, dtype=torch.uint8)
        elif self._transform is None:
            images = vary(pixels, keys, request.size, self._augment, self._preprocessing)
        else:
            varied = []
            for image, key in zip(pixels, keys, strict=True):
                with seeded(key.seed or 0):
                    varied.append(self._transform(torch.from_numpy(image).permute(2, 0, 1)))
            images = torch.stack(varied)
        return RawBatch(
            images,
            torch.tensor([self._targets[key.position] for key in keys]),
            [key.position for key in keys],
            bad,
            derive_seed(request.keys[0].seed or 0),
        )


def as_it_is(batch: Any) -> Any:
    """Take the place of torch's collation: the data set makes whole batches."""
    return batch
