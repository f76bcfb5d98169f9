"""The formats of data sets on disk: one file each with a `read`, which gives a `FolderScan`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from mnft.config.data import DataConfig
from mnft.data.folder import FolderScan
from mnft.data.labels import OTHER
from mnft.data.other import add_other
from mnft.data.readers import class_folders, table
from mnft.errors import ConfigError, DataError


def read(config: DataConfig) -> FolderScan:
    """List the images of a data set with their labels, splits and groups; no pixel is read.

    Args:
        config: the `data` section; `DataConfig(root=...)` where there is only a path.

    Raises:
        DataError: the data set cannot be used, or the folder `data.other`.
        ConfigError: `data.group` is an empty column, or neither a column nor a regular expression
            with one bracket that matches a path.
    """
    scan = _read_labelled(config)
    if any(OTHER in name.split(";") for name in {*scan.names, *(i.label for i in scan.images)}):
        raise DataError(
            f"{scan.source}: {OTHER!r} cannot be a label, it means images of none of them",
            hint="rename it; a folder of images of none of the classes is named by data.other",
        )
    return scan if config.other is None else add_other(scan, Path(config.other).expanduser())


def _read_labelled(config: DataConfig) -> FolderScan:
    """List the images of a data set, without `data.other`.

    Another format is another file here, and a test of what `data.root` holds in this function.
    """
    root = Path(config.root).expanduser()
    tables = table.find_tables(root)
    try:
        scan = table.read(root, tables, config) if tables else class_folders.read(root)
    except DataError as error:
        if tables and root.is_dir():  # which the user may not have meant as the labels
            name = tables[0][0].name
            error.hint = (
                f"{error.hint or 'fix it'}; where folders are the classes, move {name} away"
            )
        raise
    if config.group is None:
        return scan
    if scan.grouped_by == config.group:
        if scan.images and all(image.group is None for image in scan.images):
            what = f"the column {config.group!r} of {scan.source} is empty"
            raise ConfigError(what, key="data.group")
        return scan
    return _group_by_path(scan, config.group)


def _group_by_path(scan: FolderScan, expression: str) -> FolderScan:
    """Take the group of each image from its path; paths that do not match have none."""
    hint = "a regular expression on the path with one bracket, such as '^([^_]*)_'"
    if scan.table:
        hint = f"a column of {scan.table.name}, or {hint}"
    try:
        pattern = re.compile(expression)
    except re.error as error:
        what = f"{expression!r} is not a regular expression: {error}"
        raise ConfigError(what, hint=hint, key="data.group") from error
    if pattern.groups != 1:
        what = f"{expression!r} has {pattern.groups} brackets, expected one"
        raise ConfigError(what, hint=hint, key="data.group")
    images = []
    for image in scan.images:
        match = pattern.search(image.path)
        images.append(replace(image, group=match[1] if match else None))
    if images and all(image.group is None for image in images):
        what = f"{expression!r} matches no path, such as {images[0].path}"
        raise ConfigError(what, hint=hint, key="data.group")
    return replace(scan, images=tuple(images))
