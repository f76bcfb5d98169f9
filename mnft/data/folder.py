"""What every reader of image folders shares: which files are images, and how they are listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mnft.errors import DataError

IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".dib", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pnm", ".avif", ".heic", ".heif", ".hif", ".jp2", ".mpo"),
    ]
)
# Files that list images with their labels.
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
# Names of split folders, and of splits in tables.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"})


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a data set.

    Attributes:
        path: relative to the root, with forward slashes.
        label: text that the task parses: the name of a class, or what a table says of the image.
            It is in Unicode's composed form (NFC), so that the same name written on a Mac and on
            Linux is the same label.
        split: "train", "val", "test", or None where the data set has no splits.
        group: what the image was taken of or from, such as a patient or a film; images of one group
            stay in one split. None where there are no groups.
        line: the row of a table that names it, or None.
    """

    path: str
    label: str
    split: str | None
    group: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that no split uses, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FolderScan:
    """What a data set holds, as a reader gives it; no pixel was read.

    Attributes:
        root: the folder that paths are relative to.
        images: sorted by path.
        empty_classes: (split, label) of folders without any image.
        ignored: files that are not taken as images, relative to the root.
        names: the labels that the data set lists, whether or not images have them; empty where
            only the images tell.
        task: the task that the labels are for, as far as the reader can tell.
        unusable: entries of a table that cannot be used, such as rows without a file.
        table: the file with the labels; None where folders are the labels.
        grouped_by: the column with the groups; None where there is none.
    """

    root: Path
    images: tuple[ImageFile, ...]
    empty_classes: tuple[tuple[str | None, str], ...] = ()
    ignored: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    task: str = "classify"
    unusable: tuple[LeftOut, ...] = ()
    table: Path | None = None
    grouped_by: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the data set itself has; empty when it has none."""
        found = {image.split for image in self.images if image.split}
        return tuple(name for name in ("train", "val", "test") if name in found)

    @property
    def source(self) -> Path:
        """What a person calls the data set: the table, or else the folder."""
        return self.table or self.root


def check_root(root: Path, *, key: str | None = None) -> None:
    """Refuse a data set that does not exist.

    Args:
        root: a folder of images, or a table of labels.
        key: the config key that names it.

    Raises:
        DataError: no such folder, a file that is no table, or a folder that cannot be read.
    """
    if _is_folder(root) or (root.is_file() and root.suffix.lower() in TABLE_SUFFIXES):
        return
    expected = f"a folder, or a table of labels ({', '.join(TABLE_SUFFIXES)})"
    what = f"is a file, expected {expected}" if root.exists() else "no such folder"
    hint = None
    if key:
        hint = "name the folder that it is in" if root.exists() else f"data.root names {expected}"
    raise DataError(f"{root}: {what}", hint=hint, key=key)


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
