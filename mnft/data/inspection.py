"""Look at every file of a folder once, in parallel: content hash, and whether it decodes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mnft.data.decode import Inspection, inspect
from mnft.host import count_cores

# Files handed to the threads at once; a million waiting tasks would take gigabytes.
_CHUNK = 4096

T = TypeVar("T")


def inspect_files(
    root: Path,
    paths: Iterable[str],
    on_progress: Callable[[int, int], None],
    known: Container[str] = (),
) -> dict[str, Inspection]:
    """Inspect files in threads; Pillow and hashlib release the interpreter lock while they work.

    Args:
        root: the folder.
        paths: files relative to it.
        on_progress: called with the number of files done and of all files.
        known: SHA-256 of contents that are known to decode.

    Returns:
        What was found, by path.
    """
    return look_at_files(paths, lambda path: inspect(root / path, known), on_progress)


def look_at_files(
    paths: Iterable[str], look: Callable[[str], T], on_progress: Callable[[int, int], None]
) -> dict[str, T]:
    """Call a function for each path, in threads.

    Args:
        paths: what it is called with.
        look: must release the interpreter lock to gain from the threads.
        on_progress: called with the number of files done and of all files.

    Returns:
        What it gave, by path.
    """
    paths = list(paths)
    found: dict[str, T] = {}
    with ThreadPoolExecutor(max_workers=count_cores()) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            for path, result in zip(chunk, pool.map(look, chunk), strict=True):
                found[path] = result
                on_progress(len(found), len(paths))
    return found
