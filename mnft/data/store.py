"""Decoded images in one memory-mapped file for a data set and a geometry; entries by content."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from filelock import FileLock

from mnft import files
from mnft.data.cache import make_room
from mnft.data.geometry import Pixels
from mnft.data.inspection import count_cores
from mnft.data.manifest import Sample
from mnft.errors import DataError

_LOGGER = logging.getLogger(__name__)
_FORMAT = 1
# One image's entry; `check` is a CRC of the rest, so that a torn or damaged entry is not believed.
_ENTRY = np.dtype(
    [("sha256", "V32"), ("start", "<i8"), ("height", "<i4"), ("width", "<i4"), ("check", "<u4")]
)
# Images between two flushes to the disk: what a crash costs.
_CHUNK = 256

T = TypeVar("T")


class Geometry(Protocol):
    """How a file's content becomes the pixels that are kept."""

    @property
    def key(self) -> str:
        """Text that is the same for the same pixels."""

    def decode(self, content: bytes) -> Pixels:
        """The content of an image file to (H, W, C) uint8."""


class StoreUnavailable(Exception):
    """The store cannot hold the images (no room, no rights); they can be decoded instead."""


@dataclass
class StoredImages:
    """Images of a store by position; the file is mapped, and mapped anew in each process.

    Attributes:
        path: the pixels.
        starts: (N,) int64, first byte of each image.
        sizes: (N, 2) int64, height and width.
        channels: of all.
    """

    path: Path
    starts: np.ndarray[Any, np.dtype[np.int64]]
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    channels: int
    _map: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def pixels(self) -> Pixels:
        """All bytes of the file, mapped; what is written to them would not reach the file."""
        if self._map is None:
            # Not "r": torch warns of arrays that cannot be written to.
            self._map = np.memmap(self.path, dtype=np.uint8, mode="c")
        mapped: Pixels = self._map
        return mapped

    def __getitem__(self, position: int) -> Pixels:
        """One image, (H, W, C) uint8, without a copy."""
        start, (height, width) = self.starts[position], self.sizes[position]
        flat = self.pixels[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a mapped array would be pickled as its content


@dataclass(frozen=True, slots=True)
class Built:
    """What building brought: images decoded now, and bytes on the disk in all."""

    added: int
    size_bytes: int


class Store:
    """The store of one data set in one geometry.

    Two files that only grow: pixels, then the entries that say where they are. An entry is
    written after its pixels are on the disk, so what a crash leaves is whole up to the last
    flush, and the next builder goes on from there. One builder at a time holds a lock; others
    wait and find the work done. Readers need no lock.

    Args:
        cache: the cache folder.
        root: the image folder; stores of one folder lie together.
        geometry: how images are decoded.
        channels: of the pixels.
    """

    def __init__(self, cache: Path, root: Path, geometry: Geometry, channels: int) -> None:
        self._cache = cache
        self._geometry = geometry
        self._channels = channels
        key = f"{_FORMAT} {geometry.key}"
        self.folder = _data_set_folder(cache, root) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._pixels = self.folder / "pixels.bin"
        self._index = self.folder / "index.bin"
        self._about = {
            "format": _FORMAT,
            "root": ascii(str(root.absolute())),
            "geometry": geometry.key,
        }

    def build(
        self,
        root: Path,
        samples: Sequence[Sample],
        limit_bytes: int,
        on_progress: Callable[[int, int], None],
    ) -> Built:
        """Decode the images that the store lacks, in threads.

        Raises:
            DataError: an image's content is not what it was when the samples were listed.
            StoreUnavailable: no room, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                return self._build(root, samples, limit_bytes, on_progress)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreUnavailable(f"{self.folder}: {reason}") from error

    def open(self, samples: Sequence[Sample]) -> StoredImages:
        """The images of `samples`, in their order.

        Raises:
            StoreUnavailable: the store lacks some of them.
        """
        index = self._read_index()
        where = {bytes(sha256): place for place, sha256 in enumerate(index["sha256"])}
        try:
            entries = index[[where[bytes.fromhex(sample.sha256)] for sample in samples]]
        except KeyError as error:
            raise StoreUnavailable(f"{self.folder}: lacks images of this data set") from error
        sizes = np.stack([entries["height"], entries["width"]], axis=1).astype(np.int64)
        return StoredImages(self._pixels, entries["start"].astype(np.int64), sizes, self._channels)

    def _build(
        self,
        root: Path,
        samples: Sequence[Sample],
        limit_bytes: int,
        on_progress: Callable[[int, int], None],
    ) -> Built:
        index = self._read_index()
        known = {bytes(sha256) for sha256 in index["sha256"]}
        missing: dict[str, Sample] = {}
        for sample in samples:
            if bytes.fromhex(sample.sha256) not in known:
                missing.setdefault(sample.sha256, sample)
        if missing:
            files.write_json(self.folder / "about.json", self._about)
            self._append(root, list(missing.values()), index, limit_bytes, on_progress)
        os.utime(self._index)  # the time of the last use, which `make_room` goes by
        size = self._pixels.stat().st_size
        return Built(len(missing), size)

    def _append(
        self,
        root: Path,
        samples: list[Sample],
        index: np.ndarray[Any, Any],
        limit_bytes: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        end = _end(index, self._channels)
        done = 0
        with (
            open(self._pixels, "ab") as pixels,
            open(self._index, "ab") as entries,
            ThreadPoolExecutor(count_cores()) as pool,
        ):
            # What a crash left behind the last whole entry.
            pixels.truncate(end)
            entries.truncate(len(index) * _ENTRY.itemsize)
            decode = partial(self._decode, root)
            for chunk, decoded in _ahead((c, pool.map(decode, c)) for c in _chunks(samples)):
                written = np.zeros(len(chunk), dtype=_ENTRY)
                for number, (sample, image) in enumerate(zip(chunk, decoded, strict=True)):
                    if done == 0:  # a first guess of the size
                        self._check_room(image.nbytes * len(samples), limit_bytes)
                    pixels.write(image.data)
                    height, width, _ = image.shape
                    written[number] = (bytes.fromhex(sample.sha256), end, height, width, 0)
                    end += image.nbytes
                    done += 1
                    on_progress(done, len(samples))
                _flush(pixels)
                written["check"] = _checks(written)
                entries.write(written.tobytes())
                _flush(entries)

    def _decode(self, root: Path, sample: Sample) -> Pixels:
        path = root / sample.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != sample.sha256:
            raise DataError(
                f"{path}: its content has changed since the run began", hint="start it again"
            )
        try:
            return self._geometry.decode(content)
        except DataError as error:
            raise DataError(f"{path}: {error.message}") from error

    def _check_room(self, needed: int, limit_bytes: int) -> None:
        if problem := make_room(self._cache, self.folder, needed, limit_bytes):
            raise StoreUnavailable(problem)

    def _read_index(self) -> np.ndarray[Any, Any]:
        """The entries up to the first that is damaged or whose pixels are not all there."""
        try:
            content = self._index.read_bytes()
            size = self._pixels.stat().st_size
        except FileNotFoundError:
            return np.zeros(0, dtype=_ENTRY)
        index = _parse(content)
        nbytes = index["height"].astype(np.int64) * index["width"] * self._channels
        good = (index["check"] == _checks(index)) & (index["start"] + nbytes <= size)
        return index if good.all() else index[: int(np.argmin(good))]


def find_known_contents(cache: Path, root: Path) -> frozenset[str]:
    """SHA-256 of all contents of an image folder that some store has decoded before."""
    known: set[str] = set()
    for path in _data_set_folder(cache, root).glob("*/index.bin"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        index = _parse(content)
        known |= {bytes(s).hex() for s in index["sha256"][index["check"] == _checks(index)]}
    return frozenset(known)


def _parse(content: bytes) -> np.ndarray[Any, Any]:
    """The entries of an index, without one that is torn at the end."""
    return np.frombuffer(content[: len(content) // _ENTRY.itemsize * _ENTRY.itemsize], dtype=_ENTRY)


def _data_set_folder(cache: Path, root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache / name


def _chunks(samples: list[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each taken one step early: its work goes on while the last one is used."""
    current = next(items, None)
    while current is not None:
        following = next(items, None)
        yield current
        current = following


def _end(index: np.ndarray[Any, Any], channels: int) -> int:
    if not len(index):
        return 0
    last = index[-1]
    return int(last["start"]) + int(last["height"]) * int(last["width"]) * channels


def _checks(index: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    width = _ENTRY.fields["check"][1] if _ENTRY.fields else 0
    rows = index.tobytes()
    size = _ENTRY.itemsize
    sums = [zlib.crc32(rows[i * size : i * size + width]) for i in range(len(index))]
    return np.array(sums, dtype=np.uint32)


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
