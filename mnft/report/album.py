"""The pictures of a page, as data URIs within a budget: thumbnails, heat maps, neighbours."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnft.data.decode import decode_bytes, read_content
from mnft.errors import DataError
from mnft.host import count_cores
from mnft.preprocessing import Preprocessing

# Pixels of the longer side and JPEG quality, tried in this order until all pictures together fit;
# neighbours are half as long.
_LARGE = ((160, 70), (160, 50), (128, 45), (96, 40), (64, 35))
_BUDGET_BYTES = 2_000_000  # before base64, which adds a third
# Dark violet over red to pale yellow: its brightness rises steadily, which all eyes see.
_HEAT_COLOURS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))
_OPACITY = 0.6
_GAP = 8  # pixels between an image and its heat map


class Thumbnail(NamedTuple):
    """A small picture and its size in pixels."""

    uri: str
    width: int
    height: int


class Heat(NamedTuple):
    """A heat map, and where it lies on its picture in percent."""

    uri: str
    left: float
    top: float
    width: float
    height: float


class Neighbour(NamedTuple):
    """A training image near another one: path, label, and cosine of their features."""

    path: str
    label: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Album:
    """What a page shows of images.

    Attributes:
        thumbnails: pictures by path; None for a file that cannot be read.
        small: smaller ones, of neighbours.
        heats: heat maps by path and output.
        neighbours: the nearest training images, by path.
    """

    thumbnails: Mapping[str, Thumbnail | None] = field(default_factory=dict)
    small: Mapping[str, Thumbnail | None] = field(default_factory=dict)
    heats: Mapping[tuple[str, int | None], Heat] = field(default_factory=dict)
    neighbours: Mapping[str, Sequence[Neighbour]] = field(default_factory=dict)


def build_thumbnails(
    files: Mapping[str, Path], small: Mapping[str, Path]
) -> tuple[dict[str, Thumbnail | None], dict[str, Thumbnail | None]]:
    """Decode and encode pictures; with many of them they get smaller, so that the page does not.

    Args:
        files: the file of each picture.
        small: the file of each picture that is shown at half the size.
    """
    sides = dict.fromkeys(files.values(), _LARGE[0][0])
    sides = dict.fromkeys(small.values(), _LARGE[0][0] // 2) | sides
    with ThreadPoolExecutor(count_cores()) as pool:
        decoded = dict(zip(sides, pool.map(_decode, sides, sides.values()), strict=True))
    for side, quality in _LARGE:
        large = {name: _encode(decoded[path], side, quality) for name, path in files.items()}
        half = {name: _encode(decoded[path], side // 2, quality) for name, path in small.items()}
        if _count_bytes([*large.values(), *half.values()]) <= _BUDGET_BYTES:
            break
    return {k: _as_thumbnail(v) for k, v in large.items()}, {
        k: _as_thumbnail(v) for k, v in half.items()
    }


def build_heat(
    values: NDArray[Any], size: tuple[int, int], preprocessing: Preprocessing
) -> Heat | None:
    """Turn a heat map into a PNG of as many pixels as it has values; None if all of it is 0.

    Args:
        values: (h, w) float in [0, 1].
        size: width and height of the picture that it lies on.
        preprocessing: preprocessing that says which part of the picture the model saw.
    """
    if not values.any():
        return None
    image = _colour(Image.fromarray(np.round(255 * values).astype(np.uint8)))
    left, top, width, height = preprocessing.locate_input(*size)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    uri = _as_uri("png", stream.getvalue())
    return Heat(uri, *(round(100 * value, 2) for value in (left, top, width, height)))


def paint_heat(
    image: Image.Image, values: NDArray[Any], preprocessing: Preprocessing
) -> Image.Image:
    """Draw an image and, beside it, the same with its heat map over it.

    Args:
        image: an RGB image.
        values: (h, w) float in [0, 1].
        preprocessing: preprocessing that says which part of the image the model saw.
    """
    left, top, width, height = preprocessing.locate_input(*image.size)
    size = max(1, round(width * image.width)), max(1, round(height * image.height))
    levels = Image.fromarray(np.round(255 * values).astype(np.uint8))
    heat = _colour(levels.resize(size, Image.Resampling.BICUBIC))
    # Grey, so that the colours are those of the heat.
    marked = ImageOps.grayscale(image).convert("RGB")
    corner = round(left * image.width), round(top * image.height)
    covered = marked.copy()
    covered.paste(heat, corner)
    both = Image.new("RGB", (2 * image.width + _GAP, image.height), "white")
    both.paste(image, (0, 0))
    both.paste(Image.blend(marked, covered, _OPACITY), (image.width + _GAP, 0))
    return both


def _colour(levels: Image.Image) -> Image.Image:
    """Levels from 0 to 255 in the colours of heat."""
    stops = np.linspace(0, 255, len(_HEAT_COLOURS))
    table = [
        np.interp(np.arange(256), stops, [colour[channel] for colour in _HEAT_COLOURS])
        for channel in range(3)
    ]
    palette = np.round(np.stack(table, axis=1)).astype(np.uint8)
    return Image.fromarray(palette[np.asarray(levels)])


def _decode(path: Path, side: int) -> Image.Image | None:
    try:
        image = decode_bytes(read_content(path), min_side=side)
    except DataError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _encode(
    image: Image.Image | None, side: int, quality: int
) -> tuple[bytes, tuple[int, int]] | None:
    if image is None:
        return None
    copy = image.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    copy.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue(), copy.size


def _count_bytes(encoded: Iterable[tuple[bytes, tuple[int, int]] | None]) -> int:
    return sum(len(entry[0]) for entry in encoded if entry)


def _as_thumbnail(encoded: tuple[bytes, tuple[int, int]] | None) -> Thumbnail | None:
    return None if encoded is None else Thumbnail(_as_uri("jpeg", encoded[0]), *encoded[1])


def _as_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
