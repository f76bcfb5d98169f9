"""What loading processes make: whole batches of uint8 images, from files or from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mnft.data.batches.augment import Augment, draw_for
from mnft.data.batches.batch import Growth, seeded
from mnft.data.batches.resample import adjust, resample_on_cpu
from mnft.data.batches.samplers import EpochSampler, EvalSampler, Key
from mnft.data.decode import BadImage, read_content
from mnft.data.store.geometry import Pixels
from mnft.data.store.store import Geometry, StoredImages
from mnft.data.transforms import Transform
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing
from mnft.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Images by position, like `StoredImages`: each request decodes what the store would keep.

    Attributes:
        paths: of the files.
        geometry: how they are decoded.
        sums: SHA-256 that the content of each file must have; None where it is not known.
    """

    paths: Sequence[Path]
    geometry: Geometry
    sums: Sequence[str] | None = None

    def __getitem__(self, position: int) -> Pixels:
        """One image, (H, W, C) uint8.

        Raises:
            DataError: the file cannot be read or decoded, or has changed; without its name.
        """
        sha256 = self.sums[position] if self.sums else None
        return self.geometry.decode(read_content(self.paths[position], sha256=sha256))


def size_of(
    sampler: EpochSampler | EvalSampler, preprocessing: Preprocessing, growth: Growth
) -> tuple[int, int]:
    """Height and width of the images of an epoch; evaluation has them whole."""
    _, height, width = preprocessing.input_size
    if not isinstance(sampler, EpochSampler):
        return height, width
    return growth.side(height, sampler.epoch), growth.side(width, sampler.epoch)


def vary(
    pixels: Sequence[Pixels],
    keys: Sequence[Key],
    size: tuple[int, int],
    augment: Augment,
    preprocessing: Preprocessing,
    pool: ThreadPoolExecutor | None = None,
) -> Tensor:
    """Crop, flip, resize and colour the images of a batch on the CPU.

    Args:
        pixels: B arrays (H, W, C) uint8; all of one size where `augment` is None.
        keys: the key of each image, with the seed of its random choices.
        size: height and width of the result, unless `augment` is None.
        augment: how images are varied.
        preprocessing: what the model sees in evaluation.
        pool: threads to share the images between.

    Returns:
        (B, C, H, W) uint8.
    """
    if augment is None:
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    sizes = np.array([image.shape[:2] for image in pixels])
    draws = draw_for(augment, [key.seed or 0 for key in keys], sizes, preprocessing)
    images = resample_on_cpu(pixels, draws, size, preprocessing.interpolation, pool)
    return adjust(images, draws, augment, preprocessing.mean)


class Request(NamedTuple):
    """What a loading process is asked for: it does not know the epoch, which decides the size."""

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
        growth: Growth,
    ) -> None:
        self._sampler = sampler
        self._preprocessing = preprocessing
        self._growth = growth

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Request]:
        size = size_of(self._sampler, self._preprocessing, self._growth)
        for keys in self._sampler:
            yield Request(keys, size)


class BatchDataset(Dataset[RawBatch]):
    """Makes whole batches; the random choices of an image depend on its key's seed alone."""

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
        return RawBatch(
            self._vary(pixels, keys, request.size) if keys else torch.empty(0, dtype=torch.uint8),
            torch.tensor([self._targets[key.position] for key in keys]),
            [key.position for key in keys],
            bad,
            derive_seed(request.keys[0].seed or 0),
        )

    def _vary(self, pixels: list[Pixels], keys: list[Key], size: tuple[int, int]) -> Tensor:
        """(B, C, H, W) uint8."""
        if self._transform is not None:
            images = [torch.from_numpy(image).permute(2, 0, 1) for image in pixels]
            images = [self._transform_one(*one) for one in zip(images, keys, strict=True)]
            return torch.stack(images)
        return vary(pixels, keys, size, self._augment, self._preprocessing)

    def _transform_one(self, image: Tensor, key: Key) -> Tensor:
        assert self._transform is not None
        with seeded(key.seed or 0):
            return self._transform(image)


def as_it_is(batch: Any) -> Any:
    """In the place of torch's collation: a batch is made whole."""
    return batch
