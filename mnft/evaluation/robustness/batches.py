"""Batches of corrupted images: each image is decoded once, and corrupted in all ways by threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mnft.data.batches.batch import Batch, normalize_and_mix
from mnft.data.corruptions import CORRUPTIONS, LEVELS, LINES, corrupt
from mnft.data.decode import read_content
from mnft.data.manifest import Sample
from mnft.data.store.geometry import Pixels, TrainGeometry
from mnft.data.transforms import build_eval_transform
from mnft.device.machine import Machine
from mnft.errors import DataError
from mnft.evaluation.images import ImageSet
from mnft.host import count_cores
from mnft.preprocessing import Preprocessing


class Variant(NamedTuple):
    """One corruption, by its position in the table, at one level from 0 to 2."""

    corruption: int
    level: int

    @property
    def amount(self) -> float:
        """How much of the corruption that is."""
        return CORRUPTIONS[self.corruption].levels[self.level]

    def __str__(self) -> str:
        return f"{CORRUPTIONS[self.corruption].name}, {LEVELS[self.level]}"


VARIANTS = tuple(Variant(*pair) for pair in itertools.product(range(len(CORRUPTIONS)), range(3)))


def show_variant(pixels: Pixels, sample: Sample, variant: Variant) -> Pixels:
    """Corrupt an image; its random choices follow from the content of its file.

    Args:
        pixels: (H, W, 3) uint8, as `decode_for_corruption` gives them.
        sample: the image.
        variant: what happens to it.

    Returns:
        (H, W, 3) uint8.
    """
    return corrupt(pixels, variant.corruption, variant.amount, int(sample.sha256[:16], 16))


def decode_for_corruption(
    images: ImageSet, sample: Sample, preprocessing: Preprocessing | None = None
) -> Pixels:
    """Decode an image to (H, W, 3) uint8, its shorter side at most 256 pixels.

    So blur and noise mean the same for photographs of any size. If the model's own preprocessing
    keeps more pixels than that, so does this.

    Args:
        images: the images, for their folder.
        sample: one of them.
        preprocessing: preprocessing of the model's input.

    Raises:
        DataError: the file cannot be read or decoded, or has changed.
    """
    side = LINES
    if preprocessing is not None:
        longest = max(preprocessing.input_size[1:])
        side = max(side, math.ceil(longest / preprocessing.crop_pct))
    path = images.root / sample.path
    try:
        content = read_content(path, sha256=sample.sha256)
        return TrainGeometry(side, 3, "bicubic").decode(content)
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from error


@dataclass(frozen=True, slots=True)
class CorruptedBatches:
    """An iterable of `Batch`, each of one variant of some images.

    Image i of N in variant v has the position v * N + i.

    Attributes:
        images: the images.
        targets: target of each image.
        preprocessing: preprocessing of the model's input, which follows the corruption.
        machine: where the batches go.
        batch_size: number of images at once.
    """

    images: ImageSet
    targets: Sequence[Any]
    preprocessing: Preprocessing
    machine: Machine
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(count_cores()) as pool:
            # Threads make one batch while the model computes the one before.
            requests = itertools.chain(self._request(pool), [None])
            for request, _ in itertools.pairwise(requests):
                assert request is not None
                yield self._finish(*request)

    def _request(
        self, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, list[int], Iterator[Tensor]]]:
        """Number of the variant, positions of the images, and what threads are making of them."""
        see = build_eval_transform(self.preprocessing)
        samples = self.images.samples

        def decode(sample: Sample) -> Pixels:
            return decode_for_corruption(self.images, sample, self.preprocessing)

        def make(pixels: Pixels, sample: Sample, variant: Variant) -> Tensor:
            return see(Image.fromarray(show_variant(pixels, sample, variant)))

        for start in range(0, len(samples), self.batch_size):
            chosen = samples[start : start + self.batch_size]
            positions = list(range(start, start + len(chosen)))
            decoded = list(pool.map(decode, chosen))
            for number, variant in enumerate(VARIANTS):
                tensors = pool.map(make, decoded, chosen, itertools.repeat(variant))
                yield number, positions, tensors

    def _finish(self, number: int, positions: list[int], tensors: Iterator[Tensor]) -> Batch:
        device = self.machine.device
        images, targets = normalize_and_mix(
            torch.stack(list(tensors)).to(device),
            torch.tensor([self.targets[position] for position in positions]).to(device),
            self.preprocessing,
            mix=None,
            seed=0,
            channels_last=self.machine.channels_last,
        )
        first = number * len(self.images.samples)
        return Batch(images, targets, [first + position for position in positions], [])
