"""What the check knows of a file beyond what training needs: statistics of its one decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnft.data.check.perceptual import Thumbnail, build_thumbnail
from mnft.data.decode import Inspection, decode_whole, read_content
from mnft.errors import DataError

# Shorter side in pixels that statistics are taken of; larger images are reduced by a whole factor.
_SIDE = 256
# Levels of 255 between the colour channels that a grey image may have: JPEG's own noise.
_GREY_LEVELS = 8
_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ImageStats:
    """Statistics of a decoded image.

    Attributes:
        format: Pillow's name for the type of its content.
        is_grey: whether its colours are nothing but noise.
        means: mean of red, green and blue, in 0..1.
        squares: mean of their squares.
        thumbnail: what it is compared by; None where it cannot be compared.
    """

    format: str
    is_grey: bool
    means: tuple[float, ...]
    squares: tuple[float, ...]
    thumbnail: Thumbnail | None


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """What training knows of a file, and its statistics; these are None if it does not decode."""

    inspection: Inspection
    stats: ImageStats | None


def inspect_with_stats(path: Path) -> CheckedFile:
    """Read, hash and decode a file once, and compute its statistics."""
    try:
        content = read_content(path)
    except DataError as error:
        return CheckedFile(Inspection("", None, error.message), None)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        image, size, kind = decode_whole(content, _SIDE)
    except DataError as error:
        return CheckedFile(Inspection(sha256, None, error.message), None)
    return CheckedFile(Inspection(sha256, size, None), compute_stats(image, kind))


def compute_stats(image: Image.Image, kind: str) -> ImageStats:
    """The statistics of an RGB image whose content is of the type `kind`."""
    factor = min(image.size) // _SIDE
    if factor > 1:
        image = image.reduce(factor)
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    counts /= counts.sum(1, keepdims=True)
    small: Any = np.asarray(image.resize((16, 16), Image.Resampling.BOX)).astype(np.int16)
    return ImageStats(
        format=kind,
        is_grey=bool((small.max(-1) - small.min(-1)).max() <= _GREY_LEVELS),
        means=tuple((counts @ _LEVELS / 255).tolist()),
        squares=tuple((counts @ _LEVELS**2 / 255**2).tolist()),
        thumbnail=build_thumbnail(image),
    )


def compute_mean_and_std(
    stats: Sequence[ImageStats],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of each channel, every image with equal weight."""
    if not stats:
        return None, None
    means = np.mean([image.means for image in stats], axis=0)
    squares = np.mean([image.squares for image in stats], axis=0)
    std = np.sqrt(np.maximum(squares - means**2, 0))
    return tuple(means.round(4).tolist()), tuple(std.round(4).tolist())
