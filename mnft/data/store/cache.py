"""The cache folder: where it is, and how it keeps to its size."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
# Left free on the disk, so that the run itself can be saved.
_RESERVE_BYTES = 1 << 30


def choose_cache_folder(setting: str) -> Path:
    """The folder that `data.store` names; `auto` is $MNFT_CACHE, or mnft in the user's caches."""
    if setting != "auto":
        return Path(setting).expanduser()
    if own := os.environ.get("MNFT_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mnft"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "mnft" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnft"


def make_room(cache: Path, keep: Path, needed: int, limit: int) -> str | None:
    """Remove the stores used longest ago until `needed` more bytes fit.

    A process that has a removed file mapped keeps its pixels until it ends (on Windows the file
    cannot be removed, and stays).

    Args:
        cache: the folder that holds the stores, two levels down.
        keep: the store to make room for; the others of its data set stay too.
        needed: bytes that it will grow by.
        limit: bytes that all stores may have together.

    Returns:
        Why it cannot be, in words; None when there is room.
    """
    stores = {p.parent: _size(p.parent) for p in cache.glob("*/*/index.bin")}
    kept = sum(size for store, size in stores.items() if store.parent == keep.parent)
    if kept + needed > limit:
        return f"it needs {(kept + needed) / 1e9:.1f} GB, data.store_limit_gb is {limit / 1e9:g}"
    others = [store for store in stores if store.parent != keep.parent]
    used = sum(stores.values())
    for store in sorted(others, key=_last_use):
        if used + needed <= limit and _free(cache) >= needed + _RESERVE_BYTES:
            break
        _LOGGER.info("removed %s, %.1f GB, to make room", store, stores[store] / 1e9)
        shutil.rmtree(store, ignore_errors=True)
        used -= stores[store]
    if (free := _free(cache)) < needed + _RESERVE_BYTES:
        return f"the disk of {cache} has {free / 1e9:.1f} GB free, it needs {needed / 1e9:.1f} GB"
    return None


def measure_room(cache: Path, keep: Path, limit: int) -> int:
    """Bytes that `make_room` could make for a store; nothing is removed.

    Args:
        cache: the folder that holds the stores; need not exist.
        keep: the store.
        limit: bytes that all stores may have together.
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


def _last_use(store: Path) -> float:
    return (store / "index.bin").stat().st_mtime


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
