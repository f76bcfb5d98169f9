"""Inspect each file of a folder once, in threads: content hash, and whether it decodes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mnft.data.decode import Inspection, inspect
from mnft.host import count_cores
from mnft.reporter import Progress

# Files handed to the threads at once; a million waiting tasks would take gigabytes.
_CHUNK = 4096

T = TypeVar("T")


def scan_files(
    root: Path,
    paths: Iterable[str],
    on_progress: Progress = lambda _done, _total: None,
    *,
    known: Container[str] = (),
) -> dict[str, Inspection]:
    """Inspect files; Pillow and hashlib release the interpreter lock while they work.

    Args:
        root: the folder.
        paths: files relative to it.
        on_progress: a function that is called with the numbers of files done and of all files.
        known: SHA-256 of contents that are known to decode.

    Returns:
        The inspection of each file, by path.
    """
    return map_files(paths, lambda path: inspect(root / path, known), on_progress)


def map_files(
    paths: Iterable[str], function: Callable[[str], T], on_progress: Progress
) -> dict[str, T]:
    """Call a function for each path, in threads.

    Args:
        paths: the arguments of the calls.
        function: a function that releases the interpreter lock; others gain nothing from threads.
        on_progress: a function that is called with the numbers of files done and of all files.

    Returns:
        The results by path.
    """
    paths = list(paths)
    results: dict[str, T] = {}
    with ThreadPoolExecutor(max_workers=count_cores()) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            for path, result in zip(chunk, pool.map(function, chunk), strict=True):
                results[path] = result
                on_progress(len(results), len(paths))
    return results
