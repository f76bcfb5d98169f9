"""Image folders: which files are images, of which class, in which split; no pixel is read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mnft.errors import DataError
from mnft.wording import count

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pnm",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jp2",
        ".mpo",
    ]
)
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
    """One file that its ending calls an image.

    Attributes:
        path: relative to the root, with forward slashes.
        class_name: name of the class folder, in Unicode's composed form (NFC), so that the same
            name written on a Mac and on Linux is the same class.
        split: "train", "val", "test", or None where the folder has no splits.
    """

    path: str
    class_name: str
    split: str | None


@dataclass(frozen=True, slots=True)
class FolderScan:
    """What a folder holds.

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

    def class_names(self, split: str | None = None) -> list[str]:
        """Sorted class names, of one split or of all."""
        images = self.images
        return sorted({i.class_name for i in images if split is None or i.split == split})


def scan_folder(root: Path) -> FolderScan:
    """Find the images below `root`, which holds class folders or split folders with such.

    Folders in class folders belong to the class; symbolic links are followed; hidden and system
    files are passed over.

    Raises:
        DataError: no such folder, no class folder, split and class folders side by side, a class
            named like a split, or two folders for one split or class.
    """
    check_folder(root)
    splits = {d.name: SPLIT_NAMES[d.name.lower()] for d in _folders(root) if _is_split(d)}
    classes = [d.name for d in _folders(root) if not _is_split(d)]
    if not splits:
        return _collect(root, [(root, None)])
    if classes:
        raise DataError(
            f"{root}: split folders ({', '.join(sorted(splits))}) stand beside other folders "
            f"({_some(classes)}); a split never becomes a class",
            hint="keep either class folders or split folders there, and rename or move the others",
        )
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{root}: two folders for one split: {', '.join(sorted(splits))}")
    return _collect(root, [(root / name, split) for name, split in splits.items()])


def check_folder(root: Path, *, key: str | None = None) -> None:
    """Refuse a folder of images that is not there.

    Args:
        root: the folder.
        key: of the config, that names it.

    Raises:
        DataError: it is not there, a file, or cannot be read.
    """
    if not _is_folder(root):
        what = "is a file, expected a folder" if root.exists() else "no such folder"
        hint = "data.root names the folder of images" if key else None
        raise DataError(f"{root}: {what}", hint=hint, key=key)


def describe_scan(scan: FolderScan) -> str:
    """A folder in words: "1,600 images of 5 classes in train, val, test"."""
    where = f" in {', '.join(scan.splits)}" if scan.splits else ", not split"
    classes = count(len(scan.class_names()), "class", "classes")
    return f"{count(len(scan.images), 'image')} of {classes}{where}"


def list_images(folder: Path) -> list[Path]:
    """The files below a folder that their endings call images, in the order of their paths.

    Raises:
        DataError: a folder that cannot be read.
    """
    found = [f for f in _walk(folder, frozenset()) if f.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _collect(root: Path, parts: list[tuple[Path, str | None]]) -> FolderScan:
    images: list[ImageFile] = []
    empty: list[tuple[str | None, str]] = []
    loose = [f for folder in {root, *(part for part, _ in parts)} for f in _files(folder)]
    ignored = [file.relative_to(root).as_posix() for file in loose]
    for part, split in parts:
        above = frozenset(os.path.realpath(folder) for folder in (root, part))
        class_folders = _class_folders(part)
        for name, folder in class_folders.items():
            before = len(images)
            for file in _walk(folder, above):
                path = file.relative_to(root).as_posix()
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(ImageFile(path, name, split))
                else:
                    ignored.append(path)
            if len(images) == before:
                empty.append((split, name))
    images.sort(key=lambda image: image.path)
    return FolderScan(root, tuple(images), tuple(sorted(empty, key=str)), tuple(sorted(ignored)))


def _class_folders(part: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _folders(part):
        name = unicodedata.normalize("NFC", folder.name)
        if _is_split(folder):
            raise DataError(
                f"{folder}: a folder named like a split stands among the classes",
                hint="rename it if it is a class, or move it out",
            )
        if name in found:
            raise DataError(
                f"{part}: two folders are the same class name in Unicode: "
                f"{_describe_name(found[name])} and {_describe_name(folder)}",
                hint="they look alike: tell them apart by their number of files, and move all "
                "images into one of them",
            )
        found[name] = folder
    if not found:
        loose = [e.name for e in _entries(part) if e.suffix.lower() in IMAGE_SUFFIXES]
        what = f"{count(len(loose), 'image')} but no class folders" if loose else "no class folders"
        raise DataError(
            f"{part}: found {what}, expected one folder a class", hint="such as roses/ and tulips/"
        )
    return found


def _describe_name(folder: Path) -> str:
    """A name with its letters spelt out, in which of Unicode's forms it is, and its files."""
    form = "composed" if unicodedata.is_normalized("NFC", folder.name) else "decomposed"
    return f"{folder.name!a} ({form}, {count(len(_entries(folder)), 'file')})"


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """All files below a folder; a link that leads back into its own path is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _walk(entry, above | {real})
        elif _is_file(entry):
            yield entry


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if _is_folder(entry)]


def _files(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if _is_file(entry)]


def _is_folder(entry: Path) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        raise DataError(f"{entry}: cannot be read: {error.strerror}") from error


def _is_file(entry: Path) -> bool:
    """Whether it is a file, or a link to nothing: that is reported as unreadable, not ignored."""
    return entry.is_file() or (entry.is_symlink() and not entry.exists())


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    entries = [e for e in entries if not e.name.startswith(".") and not _is_system(e)]
    for entry in entries:
        if entry.name != entry.name.encode("utf-8", "replace").decode("utf-8"):
            raise DataError(f"{folder}: the name {entry.name!r} is not valid UTF-8; rename it")
    return entries


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in SPLIT_NAMES


def _is_system(entry: Path) -> bool:
    return entry.name.lower() in _SYSTEM_NAMES


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
