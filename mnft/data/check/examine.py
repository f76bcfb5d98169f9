"""One look at a file for the check: more than training needs to know, of one decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnft.data.check.perceptual import Picture, build_picture
from mnft.data.decode import Inspection, decode_whole, read_content
from mnft.data.inspection import look_at_files
from mnft.errors import DataError

# Shorter side in pixels that figures are taken of; larger images are reduced by a whole factor.
_SIDE = 256
# Levels of 255 between the colour channels that a grey image may have: JPEG's own noise.
_GREY_LEVELS = 8
_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Looks:
    """What an image looks like.

    Attributes:
        format: Pillow's name of the type of its content.
        is_grey: no pixel of it has a colour to speak of.
        means: mean of red, green and blue, in 0..1.
        squares: mean of their squares.
        picture: what to compare it by; None where it cannot be compared.
    """

    format: str
    is_grey: bool
    means: tuple[float, ...]
    squares: tuple[float, ...]
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class Examined:
    """A file: what training knows of it, and its looks where it can be decoded."""

    inspection: Inspection
    looks: Looks | None


def examine_files(
    root: Path, paths: Iterable[str], on_progress: Callable[[int, int], None]
) -> dict[str, Examined]:
    """Examine files in threads; each is read and decoded once."""
    return look_at_files(paths, lambda path: examine(root / path), on_progress)


def examine(path: Path) -> Examined:
    """Read, hash and decode a file, and see what it looks like."""
    try:
        content = read_content(path)
    except DataError as error:
        return Examined(Inspection("", None, error.message), None)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        image, size, found = decode_whole(content, _SIDE)
    except DataError as error:
        return Examined(Inspection(sha256, None, error.message), None)
    return Examined(Inspection(sha256, size, None), _look(image, found))


def compute_statistics(
    looks: Sequence[Looks],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel, every image counting alike."""
    if not looks:
        return None
    means = np.mean([look.means for look in looks], axis=0)
    squares = np.mean([look.squares for look in looks], axis=0)
    std = np.sqrt(np.maximum(squares - means**2, 0))
    return tuple(means.round(4).tolist()), tuple(std.round(4).tolist())


def _look(image: Image.Image, found: str) -> Looks:
    factor = min(image.size) // _SIDE
    if factor > 1:
        image = image.reduce(factor)
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    counts /= counts.sum(1, keepdims=True)
    return Looks(
        format=found,
        is_grey=_is_grey(image),
        means=tuple((counts @ _LEVELS / 255).tolist()),
        squares=tuple((counts @ _LEVELS**2 / 255**2).tolist()),
        picture=build_picture(image),
    )


def _is_grey(image: Image.Image) -> bool:
    small: Any = np.asarray(image.resize((16, 16), Image.Resampling.BOX)).astype(np.int16)
    return bool((small.max(-1) - small.min(-1)).max() <= _GREY_LEVELS)
