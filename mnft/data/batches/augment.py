"""The random choices of a training batch as arrays, each image's from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mnft.config.schema import AugmentConfig
from mnft.preprocessing import Preprocessing

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
# How images are varied: as the `augment` section says, by the middle crop only, or not at all.
Augment = AugmentConfig | Literal["centre"] | None

# Tries to place a random rectangle, as in torchvision.
_TRIES = 10
# torchvision's RandomErasing: share of the area, and aspect ratio.
_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)


@dataclass(frozen=True, slots=True)
class Draws:
    """What happens to each of B images, as tensors on one device.

    Attributes:
        boxes: (B, 4) int64, top, left, height, width of the crop in pixels of the image.
        hflip: (B,) bool, whether the image is flipped left-right.
        vflip: (B,) bool, whether the image is flipped upside down.
        jitter: (B, 3) float64, factors of brightness, contrast and saturation.
        erase: (B, 4) float64, top, left, height, width of the erased rectangle as fractions of the
            result; no height where there is none.
    """

    boxes: Tensor
    hflip: Tensor
    vflip: Tensor
    jitter: Tensor
    erase: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, images: slice | list[int]) -> Draws:
        """The choices for some of the images."""
        return Draws(*(part[images] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The five tensors, in the order of the attributes."""
        return self.boxes, self.hflip, self.vflip, self.jitter, self.erase


def draw_for(
    augment: Augment, seeds: Sequence[int], sizes: Ints, preprocessing: Preprocessing
) -> Draws:
    """The choices for one way of varying images.

    Args:
        augment: the `augment` section; "centre" for the middle crop, None for images as they are.
        seeds: the seed of each image; only the `augment` section uses it.
        sizes: (B, 2) height and width of each image.
        preprocessing: what the model sees in evaluation.
    """
    if augment is None:
        return draw_whole(sizes)
    if augment == "centre":
        _, height, width = preprocessing.input_size
        return draw_centre(sizes, preprocessing.crop_pct, width / height)
    return draw(seeds, sizes, augment)


def draw(seeds: Sequence[int], sizes: Ints, augment: AugmentConfig) -> Draws:
    """Choose crops, flips, colours and erased rectangles with the distributions of torchvision.

    The choices of an image follow from its seed and size only, whatever the batch it is in.

    Args:
        seeds: the seed of each image.
        sizes: (B, 2) height and width of each image.
        augment: the `augment` section.

    Returns:
        The choices, on the CPU.
    """
    count = len(seeds)
    uniforms = _Uniforms(np.array(seeds, dtype=np.int64))
    boxes = _draw_crops(sizes, uniforms, augment)
    strength = augment.color_jitter
    low = max(0.0, 1.0 - strength)
    jitter = low + uniforms.take(3) * (1.0 + strength - low)
    erase = np.zeros((count, 4))
    chosen = uniforms.take(1)[:, 0] < augment.random_erasing
    if augment.random_erasing:
        erase = np.where(chosen[:, None], _draw_rectangles(uniforms), 0.0)
    flips = uniforms.take(2) < (augment.hflip, augment.vflip)
    return _as_tensors(boxes, flips[:, 0], flips[:, 1], jitter, erase)


def draw_centre(sizes: Ints, share: float, aspect: float) -> Draws:
    """What evaluation sees: the middle crop, nothing varied.

    Args:
        sizes: (B, 2) height and width of each image.
        share: the fraction of the shorter side that the crop keeps (`crop_pct`).
        aspect: width over height of the model's input.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    h = np.minimum(height, width / aspect) * share
    sides = np.maximum(np.round(np.hstack([h, h * aspect])), 1)
    places = np.floor((np.hstack([height, width]) - sides) / 2)
    return _unvaried(np.hstack([places, sides]).astype(np.int64))


def draw_whole(sizes: Ints) -> Draws:
    """Each image as it is; for (B, 2) sizes."""
    return _unvaried(np.hstack([np.zeros_like(sizes), sizes]))


def _unvaried(boxes: Ints) -> Draws:
    none = np.zeros(len(boxes), dtype=bool)
    return _as_tensors(boxes, none, none, np.ones((len(boxes), 3)), np.zeros((len(boxes), 4)))


def _as_tensors(boxes: Ints, hflip: Bools, vflip: Bools, jitter: Floats, erase: Floats) -> Draws:
    arrays = (boxes, hflip, vflip, jitter, erase)
    return Draws(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


class _Uniforms:
    """Numbers in [0, 1) from SplitMix64 (Steele, Lea, Flood 2014), one stream for each seed."""

    _STEP = np.uint64(0x9E3779B97F4A7C15)

    def __init__(self, seeds: Ints) -> None:
        self._state = seeds.astype(np.uint64)[:, None]

    def take(self, count: int) -> Floats:
        """(B, count), the next numbers of each stream."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * self._STEP
        z = self._state + steps
        self._state = z[:, -1:]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _draw_crops(sizes: Ints, uniforms: _Uniforms, augment: AugmentConfig) -> Ints:
    """RandomResizedCrop: the first of ten boxes that fits, else the largest in the middle."""
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    low, high = max(augment.scale[0], 1e-4), augment.scale[1]
    area = height * width * (low + uniforms.take(_TRIES) * (high - low))
    least, most = np.log(augment.ratio[0]), np.log(augment.ratio[1])
    ratio = np.exp(least + uniforms.take(_TRIES) * (most - least))
    w = np.round(np.sqrt(area * ratio))
    h = np.round(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = np.argmax(fits, axis=1)[:, None]
    w, h = np.take_along_axis(w, first, 1), np.take_along_axis(h, first, 1)
    place = uniforms.take(2)
    top = np.floor(place[:, :1] * (height - h + 1))
    left = np.floor(place[:, 1:] * (width - w + 1))
    middle = _middle_crops(height, width, augment.ratio)
    boxes = np.where(fits.any(axis=1)[:, None], np.hstack([top, left, h, w]), middle)
    return boxes.astype(np.int64)


def _middle_crops(height: Floats, width: Floats, ratio: Sequence[float]) -> Floats:
    aspect = width / height
    w = np.where(aspect > ratio[1], np.round(height * ratio[1]), width)
    h = np.where(aspect < ratio[0], np.round(width / ratio[0]), height)
    w, h = np.minimum(w, width), np.minimum(h, height)
    return np.hstack([(height - h) // 2, (width - w) // 2, h, w])


def _draw_rectangles(uniforms: _Uniforms) -> Floats:
    """RandomErasing on a unit square: the first of ten rectangles that fits."""
    low, high = _ERASE_SCALE
    area = low + uniforms.take(_TRIES) * (high - low)
    least, most = np.log(_ERASE_RATIO[0]), np.log(_ERASE_RATIO[1])
    ratio = np.exp(least + uniforms.take(_TRIES) * (most - least))
    h, w = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (h < 1) & (w < 1)
    first = np.argmax(fits, axis=1)[:, None]
    h, w = np.take_along_axis(h, first, 1), np.take_along_axis(w, first, 1)
    place = uniforms.take(2)
    rectangles = np.hstack([place[:, :1] * (1 - h), place[:, 1:] * (1 - w), h, w])
    return np.where(fits.any(axis=1)[:, None], rectangles, 0.0)
