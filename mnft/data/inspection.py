"""Look at every file of a folder once, in parallel: content hash, and whether it decodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mnft.data.decode import Inspection, inspect


def inspect_files(
    root: Path, paths: Iterable[str], on_progress: Callable[[int, int], None]
) -> dict[str, Inspection]:
    """Inspect files in threads; Pillow and hashlib release the interpreter lock while they work.

    Args:
        root: the folder.
        paths: files relative to it.
        on_progress: called with the number of files done and of all files.

    Returns:
        What was found, by path.
    """
    paths = list(paths)
    found: dict[str, Inspection] = {}
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        results = pool.map(inspect, (root / path for path in paths))
        for done, (path, inspection) in enumerate(zip(paths, results, strict=True), start=1):
            found[path] = inspection
            on_progress(done, len(paths))
    return found
