"""The formats of data sets on disk: one file each with `read(root)`, which knows no task."""

from __future__ import annotations

from pathlib import Path

from mnft.data.folder import FolderScan
from mnft.data.readers import class_folders


def read(root: Path) -> FolderScan:
    """List the images of a data set with their labels and splits; no pixel is read.

    Another format is another file here, and a test of what `root` holds in this function.

    Raises:
        DataError: the data set cannot be used.
    """
    return class_folders.read(root)
