"""What every reader of image folders shares: which files are images, and how they are listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mnft.errors import DataError
from mnft.text import count

IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".dib", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pnm", ".avif", ".heic", ".heif", ".hif", ".jp2", ".mpo"),
    ]
)
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"})


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file that its extension calls an image.

    Attributes:
        path: relative to the root, with forward slashes.
        label: name of the class folder, in Unicode's composed form (NFC), so that the same
            name written on a Mac and on Linux is the same class.
        split: "train", "val", "test", or None where the folder has no splits.
    """

    path: str
    label: str
    split: str | None


@dataclass(frozen=True, slots=True)
class FolderScan:
    """What a folder holds, as a reader gives it; no pixel was read.

    Attributes:
        root: the folder.
        images: sorted by path.
        empty_classes: (split, class) folders without any image.
        ignored: files that are not taken as images, relative to the root.
    """

    root: Path
    images: tuple[ImageFile, ...]
    empty_classes: tuple[tuple[str | None, str], ...]
    ignored: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the folder itself has; empty when it has none."""
        found = {image.split for image in self.images if image.split}
        return tuple(name for name in ("train", "val", "test") if name in found)

    def labels(self, split: str | None = None) -> list[str]:
        """Sorted class names, of one split or of all."""
        images = self.images
        return sorted({i.label for i in images if split is None or i.split == split})


def check_folder(root: Path, *, key: str | None = None) -> None:
    """Refuse a folder of images that does not exist.

    Args:
        root: the folder.
        key: the config key that names it.

    Raises:
        DataError: no such folder, a file, or a folder that cannot be read.
    """
    if not _is_folder(root):
        what = "is a file, expected a folder" if root.exists() else "no such folder"
        hint = "data.root names the folder of images" if key else None
        raise DataError(f"{root}: {what}", hint=hint, key=key)


def describe_scan(scan: FolderScan) -> str:
    """A folder in words: "1,600 images of 5 classes in train, val, test"."""
    where = f" in {', '.join(scan.splits)}" if scan.splits else ", not split"
    classes = count(len(scan.labels()), "class", "classes")
    return f"{count(len(scan.images), 'image')} of {classes}{where}"


def list_images(folder: Path) -> list[Path]:
    """The files below a folder that their extensions call images, in the order of their paths.

    Raises:
        DataError: a folder that cannot be read.
    """
    images = [file for file in walk(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(images, key=lambda file: file.relative_to(folder).as_posix())


def walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder.

    Args:
        folder: the folder.
        above: real paths of the folders that it lies in; a link to one of them is not followed.

    Raises:
        DataError: a folder that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in list_entries(folder):
        if _is_folder(entry):
            yield from walk(entry, above | {real})
        elif _is_file(entry):
            yield entry


def list_folders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name."""
    return [entry for entry in list_entries(folder) if _is_folder(entry)]


def list_files(folder: Path) -> list[Path]:
    """The files directly in a folder, sorted by name."""
    return [entry for entry in list_entries(folder) if _is_file(entry)]


def list_entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden and system files.

    Raises:
        DataError: it cannot be read, or a name in it is not valid UTF-8.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    entries = [
        e for e in entries if not e.name.startswith(".") and e.name.lower() not in _SYSTEM_NAMES
    ]
    for entry in entries:
        if entry.name != entry.name.encode("utf-8", "replace").decode("utf-8"):
            raise DataError(f"{folder}: the name {entry.name!r} is not valid UTF-8; rename it")
    return entries


def _is_folder(entry: Path) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        raise DataError(f"{entry}: cannot be read: {error.strerror}") from error


def _is_file(entry: Path) -> bool:
    """Whether it is a file, or a broken link, which is reported as unreadable, not ignored."""
    return entry.is_file() or (entry.is_symlink() and not entry.exists())
