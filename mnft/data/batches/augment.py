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
# torchvision's RandomErasing: fraction of the area, and aspect ratio.
_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """What happens to each of B images, as tensors on one device.

    Attributes:
        boxes: (B, 4) int64, top, left, height, width of the crop in pixels of the image.
        hflip: (B,) bool, whether the image is flipped left-right.
        vflip: (B,) bool, whether the image is flipped top-bottom.
        jitter: (B, 3) float64, factors of brightness, contrast and saturation.
        erase: (B, 4) float64, top, left, height, width of the erased rectangle as fractions of the
            result; its height is 0 where nothing is erased.
    """

    boxes: Tensor
    hflip: Tensor
    vflip: Tensor
    jitter: Tensor
    erase: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, images: slice | list[int]) -> AugmentParams:
        """The parameters of some of the images."""
        return AugmentParams(*(part[images] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The five tensors, in the order of the attributes."""
        return self.boxes, self.hflip, self.vflip, self.jitter, self.erase


def choose_params(
    augment: Augment, seeds: Sequence[int], sizes: Ints, preprocessing: Preprocessing
) -> AugmentParams:
    """The parameters for one way of varying images, on the CPU.

    Args:
        augment: the `augment` section; "centre" for the middle crop that evaluation sees if it sees
            a part of the image, None for images as they are.
        seeds: the seed of each image; only the `augment` section uses it.
        sizes: (B, 2) height and width of each image.
        preprocessing: what the model sees in evaluation.
    """
    if isinstance(augment, AugmentConfig):
        return sample_params(seeds, sizes, augment)
    boxes = np.hstack([np.zeros_like(sizes), sizes])
    if augment == "centre":
        aspect = preprocessing.input_size[2] / preprocessing.input_size[1]
        height, width = sizes[:, :1], sizes[:, 1:]
        h = np.minimum(height, width / aspect) * preprocessing.crop_pct
        sides = np.maximum(np.round(np.hstack([h, h * aspect])), 1)
        places = np.floor((sizes - sides) / 2)
        boxes = np.hstack([places, sides]).astype(np.int64)
    none = np.zeros(len(sizes), dtype=bool)
    return _as_tensors(boxes, none, none, np.ones((len(sizes), 3)), np.zeros((len(sizes), 4)))


def sample_params(seeds: Sequence[int], sizes: Ints, augment: AugmentConfig) -> AugmentParams:
    """Sample crops, flips, colours and erased rectangles with the distributions of torchvision.

    The parameters of an image follow only from its seed and size, whatever batch it is in.

    Args:
        seeds: the seed of each image.
        sizes: (B, 2) height and width of each image.
        augment: the `augment` section.

    Returns:
        The parameters, on the CPU.
    """
    # The order of `take` decides which numbers each choice gets: a change would change all runs.
    uniforms = _Uniforms(np.array(seeds, dtype=np.int64))
    boxes = _sample_crops(sizes, uniforms, augment)
    strength = augment.color_jitter
    low = max(0.0, 1.0 - strength)
    jitter = low + uniforms.take(3) * (1.0 + strength - low)
    erase = np.zeros((len(seeds), 4))
    chosen = uniforms.take(1)[:, 0] < augment.random_erasing
    if augment.random_erasing:
        # RandomErasing on a unit square: the first of ten rectangles that fits.
        h, w = _sample_sides(uniforms, 1.0, _ERASE_SCALE, _ERASE_RATIO)
        fits = (h < 1) & (w < 1)
        h, w = _take_first(h, w, fits)
        place = uniforms.take(2)
        rectangles = np.hstack([place[:, :1] * (1 - h), place[:, 1:] * (1 - w), h, w])
        erase = np.where((chosen & fits.any(axis=1))[:, None], rectangles, 0.0)
    flips = uniforms.take(2) < (augment.hflip, augment.vflip)
    return _as_tensors(boxes, flips[:, 0], flips[:, 1], jitter, erase)


def _sample_crops(sizes: Ints, uniforms: _Uniforms, augment: AugmentConfig) -> Ints:
    """RandomResizedCrop: the first of ten boxes that fits, else the largest in the middle."""
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    scale, ratio = (max(augment.scale[0], 1e-4), augment.scale[1]), augment.ratio
    h, w = (np.round(side) for side in _sample_sides(uniforms, height * width, scale, ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    h, w = _take_first(h, w, fits)
    place = uniforms.take(2)
    top = np.floor(place[:, :1] * (height - h + 1))
    left = np.floor(place[:, 1:] * (width - w + 1))
    boxes = np.hstack([top, left, h, w])
    aspect = width / height
    w = np.minimum(np.where(aspect > ratio[1], np.round(height * ratio[1]), width), width)
    h = np.minimum(np.where(aspect < ratio[0], np.round(width / ratio[0]), height), height)
    middle = np.hstack([(height - h) // 2, (width - w) // 2, h, w])
    return np.where(fits.any(axis=1, keepdims=True), boxes, middle).astype(np.int64)


def _sample_sides(
    uniforms: _Uniforms, area: Floats | float, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[Floats, Floats]:
    """Heights and widths of ten boxes an image: a fraction of an area, and a log-uniform ratio."""
    areas = area * (scale[0] + uniforms.take(_TRIES) * (scale[1] - scale[0]))
    least, most = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(least + uniforms.take(_TRIES) * (most - least))
    return np.sqrt(areas / ratios), np.sqrt(areas * ratios)


def _take_first(h: Floats, w: Floats, fits: Bools) -> tuple[Floats, Floats]:
    """(B, 1) sides of the first box of each image that fits; of the first box if none does."""
    first = np.argmax(fits, axis=1)[:, None]
    return np.take_along_axis(h, first, 1), np.take_along_axis(w, first, 1)


def _as_tensors(
    boxes: Ints, hflip: Bools, vflip: Bools, jitter: Floats, erase: Floats
) -> AugmentParams:
    arrays = (boxes, hflip, vflip, jitter, erase)
    return AugmentParams(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


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
