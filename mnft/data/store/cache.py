"""The cache folder: where it is, and how it keeps to its size."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from platformdirs import user_cache_dir

_log = logging.getLogger(__name__)
# Left free on the disk, so that the run itself can be saved.
_RESERVE_BYTES = 1 << 30


def choose_cache_folder(setting: str) -> Path:
    """The folder that `data.store` names; `auto` is $MNFT_CACHE, or mnft in the user's caches."""
    if setting == "auto":
        setting = os.environ.get("MNFT_CACHE") or user_cache_dir("mnft", appauthor=False)
    return Path(setting).expanduser()


def make_room(cache: Path, keep: Path, needed: int, limit: int) -> str | None:
    """Remove the stores used longest ago until `needed` more bytes fit.

    A process that has a removed file mapped keeps its pixels until it ends (on Windows the file
    cannot be removed, and stays).

    Args:
        cache: the folder that holds the stores, two levels down.
        keep: the store that will grow; the others of its data set stay too.
        needed: number of bytes that it will grow by.
        limit: number of bytes that all stores may have together.

    Returns:
        The reason why there is no room, in words; None when there is room.
    """
    stores = {p.parent: _size(p.parent) for p in cache.glob("*/*/index.bin")}
    kept = sum(size for store, size in stores.items() if store.parent == keep.parent)
    if kept + needed > limit:
        return f"it needs {(kept + needed) / 1e9:.1f} GB, data.store_limit_gb is {limit / 1e9:g}"
    others = [store for store in stores if store.parent != keep.parent]
    used = sum(stores.values())
    for store in sorted(others, key=lambda store: (store / "index.bin").stat().st_mtime):
        if used + needed <= limit and _free(cache) >= needed + _RESERVE_BYTES:
            break
        _log.info("removed %s, %.1f GB, to make room", store, stores[store] / 1e9)
        shutil.rmtree(store, ignore_errors=True)
        used -= stores[store]
    if (free := _free(cache)) < needed + _RESERVE_BYTES:
        return f"the disk of {cache} has {free / 1e9:.1f} GB free, it needs {needed / 1e9:.1f} GB"
    return None


def measure_room(cache: Path, keep: Path, limit: int) -> int:
    """Bytes that `make_room` could make for a store; nothing is removed.

    Args:
        cache: the folder that holds the stores; it need not exist.
        keep: the store that would grow.
        limit: number of bytes that all stores may have together.
    """
    stores = {p.parent: _size(p.parent) for p in cache.glob("*/*/index.bin")}
    kept = sum(size for store, size in stores.items() if store.parent == keep.parent)
    return min(limit - kept, measure_free(cache) + sum(stores.values()) - kept - _RESERVE_BYTES)


def measure_free(folder: Path) -> int:
    """Free bytes on the disk that a folder is on, or will be on."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return _free(there)


def _size(store: Path) -> int:
    return sum(file.stat().st_size for file in store.iterdir() if file.is_file())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
