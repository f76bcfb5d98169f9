"""The entries of a store's index: what is where, and sums that show what is damaged."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Index = np.ndarray[Any, Any]
# One image's entry; `sum` is a CRC of its pixels, `check` one of the rest of the entry, so that
# what is torn or damaged is not believed.
ENTRY = np.dtype(
    [
        ("sha256", "V32"),
        ("start", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("sum", "<u4"),
        ("check", "<u4"),
    ]
)


def parse_index(content: bytes) -> Index:
    """The entries of an index, without one that is torn at the end."""
    return np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], dtype=ENTRY)


def compute_ends(index: Index, channels: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first byte behind each image."""
    ends: np.ndarray[Any, np.dtype[np.int64]] = (
        index["start"] + index["height"].astype(np.int64) * index["width"] * channels
    )
    return ends


def compute_checks(index: Index) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The `check` that each entry must have."""
    width = ENTRY.fields["check"][1] if ENTRY.fields else 0
    rows = index.tobytes()
    size = ENTRY.itemsize
    sums = [zlib.crc32(rows[i * size : i * size + width]) for i in range(len(index))]
    return np.array(sums, dtype=np.uint32)
