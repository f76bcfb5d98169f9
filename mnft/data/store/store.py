"""Decoded images in one memory-mapped file for a data set and a geometry; entries by content."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from filelock import FileLock

from mnft import files
from mnft.data.manifest import Sample
from mnft.data.store.cache import make_room
from mnft.data.store.geometry import Pixels
from mnft.data.store.index import ENTRY, Index, compute_checks, compute_ends, parse_index
from mnft.errors import DataError
from mnft.host import count_cores
from mnft.reporter import Progress

_log = logging.getLogger(__name__)
_FORMAT = 2  # 1 had no sums of the pixels
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
    """Images of a store by position; each process maps the file for itself.

    Attributes:
        path: the file that holds the pixels.
        starts: (N,) int64, first byte of each image.
        sizes: (N, 2) int64, height and width of each image.
        channels: number of channels of all images.
    """

    path: Path
    starts: np.ndarray[Any, np.dtype[np.int64]]
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    channels: int
    _map: Any = field(default=None, repr=False)
    _file: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def pixels(self) -> Pixels:
        """All bytes of the file, mapped; what is written to them would not reach the file.

        Raises:
            DataError: the file was cut off; the system kills a process that reads behind its end.
        """
        if self._map is None:
            with open(self.path, "rb") as stream:
                # Not read-only: torch warns of arrays that cannot be written to.
                self._file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            self._map = np.frombuffer(self._file, dtype=np.uint8)
        if self._file.size() < len(self._map):
            raise DataError(
                f"{self.path}: the stored images were cut off while they were in use",
                hint="`mnft train --resume RUN` continues, and decodes what is missing",
            )
        mapped: Pixels = self._map
        return mapped

    def __getitem__(self, position: int) -> Pixels:
        """One image, (H, W, C) uint8, without a copy."""
        start, (height, width) = self.starts[position], self.sizes[position]
        flat = self.pixels[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels)

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be pickled as its content.
        return {**self.__dict__, "_map": None, "_file": None}


@dataclass(frozen=True, slots=True)
class Built:
    """The result of building: images decoded now, and all bytes on the disk."""

    added: int
    size_bytes: int


class Store:
    """The store of one data set in one geometry.

    It has two files that only grow: the pixels, and the entries that say where they are. An entry
    is written after its pixels are on the disk, so what a crash leaves is whole up to the last
    flush, and the next builder continues from there. An image whose pixels are damaged is decoded
    again, behind the others. One builder at a time holds a lock; others wait and find the work
    done. Readers need no lock.

    Args:
        cache: the cache folder.
        root: the image folder; stores of one folder lie together.
        geometry: how images are decoded.
        channels: number of channels of the pixels.
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
        on_progress: Progress,
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
        on_progress: Progress,
    ) -> Built:
        wanted = {sample.sha256: sample for sample in reversed(samples)}
        known = self._check_whole(bytes.fromhex(sha256) for sha256 in wanted)
        missing = [s for key, s in wanted.items() if bytes.fromhex(key) not in known][::-1]
        if missing:
            files.write_json(self.folder / "about.json", self._about)
            self._append(root, missing, limit_bytes, on_progress)
        os.utime(self._index)  # the time of the last use, which `make_room` goes by
        size = self._pixels.stat().st_size
        return Built(len(missing), size)

    def _append(
        self,
        root: Path,
        samples: list[Sample],
        limit_bytes: int,
        on_progress: Progress,
    ) -> None:
        end, count = self._locate_end()
        done = 0
        with (
            open(self._pixels, "ab") as pixels,
            open(self._index, "ab") as entries,
            ThreadPoolExecutor(count_cores()) as pool,
        ):
            # What a crash left behind the last whole entry.
            pixels.truncate(end)
            entries.truncate(count * ENTRY.itemsize)
            decode = partial(self._decode, root)
            for chunk, decoded in _ahead((c, pool.map(decode, c)) for c in _chunks(samples)):
                written = np.zeros(len(chunk), dtype=ENTRY)
                for number, (sample, image) in enumerate(zip(chunk, decoded, strict=True)):
                    if done == 0:  # a first guess of the size
                        size = image.nbytes * len(samples)
                        if problem := make_room(self._cache, self.folder, size, limit_bytes):
                            raise StoreUnavailable(problem)
                    pixels.write(image.data)
                    height, width, _ = image.shape
                    crc = zlib.crc32(image.data)
                    written[number] = (bytes.fromhex(sample.sha256), end, height, width, crc, 0)
                    end += image.nbytes
                    done += 1
                    on_progress(done, len(samples))
                _flush(pixels)
                written["check"] = compute_checks(written)
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

    def _read_index(self) -> Index:
        """The entries that are not damaged and whose pixels are all there."""
        try:
            content = self._index.read_bytes()
            size = self._pixels.stat().st_size
        except FileNotFoundError:
            return np.zeros(0, dtype=ENTRY)
        index = parse_index(content)
        there = compute_ends(index, self._channels) <= size
        kept: Index = index[there & (index["check"] == compute_checks(index))]
        return kept

    def _locate_end(self) -> tuple[int, int]:
        """Where the next pixels go, in bytes, and the next entry.

        They go behind the pixels of damaged entries: a reader that opened the store before the
        damage still reads those.
        """
        try:
            raw = parse_index(self._index.read_bytes())
            size = self._pixels.stat().st_size
        except FileNotFoundError:
            return 0, 0
        index = self._read_index()
        if len(index) < len(raw):
            return size, len(raw)
        return int(compute_ends(index, self._channels).max(initial=0)), len(raw)

    def _check_whole(self, wanted: Iterable[bytes]) -> set[bytes]:
        """Which of these contents have entries, and pixels that are what was written."""
        index = self._read_index()
        places = {bytes(sha256): place for place, sha256 in enumerate(index["sha256"])}
        chosen = index[[places[sha256] for sha256 in wanted if sha256 in places]]
        if not len(chosen):
            return set()
        pixels = np.memmap(self._pixels, dtype=np.uint8, mode="r")
        ends = compute_ends(chosen, self._channels).tolist()
        spans = zip(chosen["start"].tolist(), ends, strict=True)
        with ThreadPoolExecutor(count_cores()) as pool:
            sums = pool.map(lambda span: zlib.crc32(pixels[span[0] : span[1]].data), spans)
            whole = np.fromiter(sums, dtype=np.uint32, count=len(chosen)) == chosen["sum"]
        if damaged := int((~whole).sum()):
            _log.warning("%s: %d damaged images are decoded again", self._pixels, damaged)
        return {bytes(sha256) for sha256 in chosen["sha256"][whole]}


def list_known_contents(cache: Path, root: Path) -> frozenset[str]:
    """SHA-256 of all contents of an image folder that some store has decoded before."""
    known: set[str] = set()
    for path in _data_set_folder(cache, root).glob("*/index.bin"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        index = parse_index(content)
        known |= {bytes(s).hex() for s in index["sha256"][index["check"] == compute_checks(index)]}
    return frozenset(known)


def _data_set_folder(cache: Path, root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache / name


def _chunks(samples: list[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each taken one step early: it is decoded while the one before is written."""
    current = next(items, None)
    while current is not None:
        following = next(items, None)
        yield current
        current = following


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
