"""Images that look the same: near perceptual hashes, confirmed by comparing thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

# Side of the grey thumbnail that is hashed and compared, in pixels. Smaller images say too little.
SIDE = 32
# Number of areas in a row whose colours are compared.
COLOURS = 4
# Least standard deviation of its grey levels; the hash of a plain area is that of its noise.
MIN_CONTRAST = 6.0
# Bits (of 64) that the hashes of two images may differ in. Measured, see docs/data-check.md.
MAX_DISTANCE = 10
# Least correlation of the two grey thumbnails.
MIN_CORRELATION = 0.9
# Limits of the same image, saved again: bits, correlation, and mean difference of the
# grey levels, and of the colours, of 255.
_TIGHT_DISTANCE = 6
_TIGHT_CORRELATION = 0.985
_TIGHT_LEVELS = 4.0
# The hash in six parts. Of two hashes with at most 10 different bits one part has at most one.
_PARTS = (0, 11, 22, 33, 43, 54, 64)
# Pairs that are compared; the frames of a film have as many as the square of their number.
MAX_PAIRS = 5_000_000
_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What an image is compared by.

    Attributes:
        hash: 64 bits, see `compute_hash`.
        grey: SIDE * SIDE grey levels, row by row.
        colours: levels of red, green and blue of COLOURS * COLOURS areas, row by row.
    """

    hash: int
    grey: bytes
    colours: bytes


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images that look alike.

    Attributes:
        places: (P, 2) int64, positions in the list of thumbnails, the smaller first, ascending.
        is_tight: (P,) bool, whether they are the same image, saved again.
        is_complete: False where the search stopped at MAX_PAIRS.
    """

    places: NDArray[Any]
    is_tight: NDArray[Any]
    is_complete: bool


def build_thumbnail(image: Image.Image) -> Thumbnail | None:
    """What to compare an RGB image by; None where it is too small or too plain to be compared."""
    if min(image.size) < SIDE:
        return None
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    if grey.std() < MIN_CONTRAST:
        return None
    colours = image.resize((COLOURS, COLOURS), Image.Resampling.BOX)
    return Thumbnail(compute_hash(grey), grey.tobytes(), colours.tobytes())


def compute_hash(grey: NDArray[Any]) -> int:
    """The DCT hash of Zauner (2010), "Implementation and Benchmarking of Perceptual Image Hash
    Functions", section 3.2.1: 64 low frequencies, without the lowest, against their median.

    Where the paper blurs and takes every n-th pixel, means of areas are taken here.

    Args:
        grey: (SIDE, SIDE) uint8.

    Returns:
        64 bits, of which 32 are set unless frequencies are equal.
    """
    frequencies = dctn(grey.astype(np.float32), norm="ortho")[1:9, 1:9].ravel()
    bits = np.packbits(frequencies > np.median(frequencies))
    return int.from_bytes(bits.tobytes(), "big")


def list_alike(thumbnails: Sequence[Thumbnail]) -> Pairs:
    """All pairs of images that show the same: near hashes, confirmed by their thumbnails."""
    hashes = np.array([thumbnail.hash for thumbnail in thumbnails], dtype=np.uint64)
    pairs, is_complete = list_near_pairs(hashes)
    kept, tight = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=bool)]
    for start in range(0, len(pairs), _AT_ONCE):
        some = pairs[start : start + _AT_ONCE]
        is_alike, is_tight = _compare(thumbnails, some)
        kept.append(some[is_alike])
        tight.append(is_tight[is_alike])
    return Pairs(np.concatenate(kept), np.concatenate(tight), is_complete)


def list_near_pairs(hashes: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """All pairs of hashes with at most MAX_DISTANCE different bits.

    Only pairs are compared in which one of six parts differs in at most one bit: all near pairs
    have such a part (Norouzi, Punjani, Fleet 2012, "Fast Search in Hamming Space with Multi-Index
    Hashing", section 3.1).

    Args:
        hashes: (N,) uint64.

    Returns:
        (P, 2) positions, the smaller first, ascending; and whether those are all.
    """
    found = [np.empty(0, dtype=np.int64)]
    count = 0
    for low, high in pairwise(_PARTS):
        for first, second in _near_in_part(hashes, low, high - low):
            pair = first < second
            codes = first[pair] * len(hashes) + second[pair]
            found.append(codes)
            count += len(codes)
            if count > MAX_PAIRS:
                return _decode_pairs(found, len(hashes)), False
    return _decode_pairs(found, len(hashes)), True


def _decode_pairs(found: Sequence[NDArray[Any]], count: int) -> NDArray[Any]:
    codes = np.unique(np.concatenate(found))
    return np.stack(np.divmod(codes, max(count, 1)), axis=1)


def _near_in_part(
    hashes: NDArray[Any], low: int, width: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Near pairs, in both orders, among those that differ in at most one bit of a part."""
    keys = (hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[order], np.arange((1 << width) + 1))
    for key in np.unique(keys).tolist():
        own = order[starts[key] : starts[key + 1]]
        near = [key, *(key ^ (1 << bit) for bit in range(width))]
        others = np.concatenate([order[starts[other] : starts[other + 1]] for other in near])
        # In parts: a million images with one key would be a table of a terabyte.
        step = max(1, (1 << 24) // len(others))
        for start in range(0, len(own), step):
            some = own[start : start + step]
            distances = np.bitwise_count(hashes[some][:, None] ^ hashes[others][None, :])
            rows, columns = np.nonzero(distances <= MAX_DISTANCE)
            yield some[rows], others[columns]


def _compare(
    thumbnails: Sequence[Thumbnail], pairs: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(P,) whether they show the same, and (P,) whether they are the same image."""
    first, second = ([thumbnails[place] for place in column] for column in pairs.T.tolist())
    one, other = (_stack(p.grey for p in side) for side in (first, second))
    colours = (_stack(p.colours for p in side) for side in (first, second))
    centred, others = (grey - grey.mean(1, keepdims=True) for grey in (one, other))
    squares = (centred**2).sum(1) * (others**2).sum(1)
    correlations = np.asarray((centred * others).sum(1) / np.sqrt(squares))
    distances = [(p.hash ^ q.hash).bit_count() for p, q in zip(first, second, strict=True)]
    is_tight = (
        (np.array(distances) <= _TIGHT_DISTANCE)
        & (correlations >= _TIGHT_CORRELATION)
        & (_difference(one, other) <= _TIGHT_LEVELS)
        & (_difference(*colours) <= _TIGHT_LEVELS)
    )
    return correlations >= MIN_CORRELATION, is_tight


def _stack(rows: Iterable[bytes]) -> NDArray[Any]:
    return np.stack([np.frombuffer(row, np.uint8) for row in rows]).astype(np.float32)


def _difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.abs(first - second).mean(1))
