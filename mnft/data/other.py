"""Images of none of the classes (`data.other`): they join a data set under a label of their own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mnft.data.folder import SPLIT_NAMES, FolderScan, ImageFile, list_images
from mnft.data.labels import OTHER
from mnft.errors import DataError
from mnft.text import count

_SHOWN = 5


def list_other(folder: Path, *, key: str | None = None) -> list[Path]:
    """The images below a folder of images of none of the classes.

    Args:
        folder: the folder; its own folders mean nothing.
        key: the config key that names it.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        what = "is a file, expected a folder of images" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}", key=key)
    images = list_images(folder)
    if not images:
        raise DataError(
            f"{folder}: found no images, expected some that belong to none of the classes", key=key
        )
    return images


def add_other(scan: FolderScan, folder: Path) -> FolderScan:
    """Add the images of a folder to a data set, with the label OTHER.

    Where the data set has splits, the folder may have them too: train/, val/ and test/. Images that
    lie in none of these belong to train, from which the missing splits are cut.

    Raises:
        DataError: no such folder, or no image in it.
    """
    images = []
    for file in list_other(folder, key="data.other"):
        split = None
        if scan.splits:
            top = file.relative_to(folder).parts[0].lower()
            split = SPLIT_NAMES.get(top, "train")
            split = split if split in scan.splits else "train"
        images.append(ImageFile(_name(file, scan.root), OTHER, split))
    return replace(scan, images=tuple(sorted((*scan.images, *images), key=lambda i: i.path)))


def _name(file: Path, root: Path) -> str:
    """A path that leads from the root to a file: relative, so that both may move together."""
    try:
        path = Path(os.path.relpath(file, root)).as_posix()
        # `..` after a link leads elsewhere.
        if (root / path).samefile(file):
            return path
    except (OSError, ValueError):  # another drive, or a broken link, which is reported later
        pass
    return file.absolute().as_posix()


def check_apart(images: Iterable[ImageFile], hashes: Mapping[str, str]) -> None:
    """Refuse images of none of the classes that are also images of a class.

    Args:
        images: all images of the data set.
        hashes: content of each image, by path.

    Raises:
        DataError: with the paths.
    """
    of_classes: dict[str, str] = {}
    others: dict[str, str] = {}
    for image in images:
        (others if image.label == OTHER else of_classes)[hashes[image.path]] = image.path
    if shared := [(path, of_classes[c]) for c, path in others.items() if c in of_classes]:
        raise DataError(
            f"{count(len(shared), 'image')} of none of the classes "
            f"{'has' if len(shared) == 1 else 'have'} the same bytes as images of a class:\n"
            + "\n".join(f"  {other} and {own}" for other, own in shared[:_SHOWN])
            + (f"\n  and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""),
            hint="data.other names a folder outside of data.root, with other images",
            key="data.other",
        )
