"""Class folders: `root/class/image.jpg`, or split folders that hold them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from mnft.data.folder import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    FolderScan,
    ImageFile,
    check_root,
    list_entries,
    list_files,
    list_folders,
    walk,
)
from mnft.errors import DataError
from mnft.text import count


def read(root: Path) -> FolderScan:
    """List the images below `root`, which holds class folders, or split folders with class folders.

    Folders inside class folders belong to the class; symbolic links are followed; hidden files and
    system files are skipped.

    Raises:
        DataError: no such folder, no class folder, split folders beside class folders, a class
            named like a split, or two folders for one split or class.
    """
    check_root(root)
    folders = list_folders(root)
    splits = {f.name: SPLIT_NAMES[f.name.lower()] for f in folders if _is_split(f)}
    others = [f.name for f in folders if not _is_split(f)]
    parts: list[tuple[Path, str | None]] = [(root, None)]
    if splits:
        if others:
            some = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
            raise DataError(
                f"{root}: split folders ({', '.join(sorted(splits))}) stand beside other folders "
                f"({some}); a split never becomes a class",
                hint="keep either class folders or split folders there, and rename or move the "
                "others",
            )
        if len(set(splits.values())) < len(splits):
            raise DataError(f"{root}: two folders for one split: {', '.join(sorted(splits))}")
        parts = [(root / name, split) for name, split in splits.items()]
    images: list[ImageFile] = []
    empty: list[tuple[str | None, str]] = []
    loose = [file for folder in {root, *(part for part, _ in parts)} for file in list_files(folder)]
    ignored = [file.relative_to(root).as_posix() for file in loose]
    for part, split in parts:
        above = frozenset(os.path.realpath(folder) for folder in (root, part))
        for name, folder in _list_classes(part).items():
            before = len(images)
            for file in walk(folder, above):
                path = file.relative_to(root).as_posix()
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(ImageFile(path, name, split))
                else:
                    ignored.append(path)
            if len(images) == before:
                empty.append((split, name))
    images.sort(key=lambda image: image.path)
    return FolderScan(root, tuple(images), tuple(sorted(empty, key=str)), tuple(sorted(ignored)))


def _list_classes(part: Path) -> dict[str, Path]:
    """The class folders of a split by their names in composed Unicode."""
    classes: dict[str, Path] = {}
    for folder in list_folders(part):
        name = unicodedata.normalize("NFC", folder.name)
        if _is_split(folder):
            raise DataError(
                f"{folder}: a folder named like a split stands among the classes",
                hint="rename it if it is a class, or move it out",
            )
        if name in classes:
            raise DataError(
                f"{part}: two folders are the same class name in Unicode: "
                f"{_describe_name(classes[name])} and {_describe_name(folder)}",
                hint="they look alike: tell them apart by their number of files, and move all "
                "images into one of them",
            )
        classes[name] = folder
    if not classes:
        loose = [e.name for e in list_entries(part) if e.suffix.lower() in IMAGE_SUFFIXES]
        what = f"{count(len(loose), 'image')} but no class folders" if loose else "no class folders"
        raise DataError(
            f"{part}: found {what}, expected one folder a class", hint="such as roses/ and tulips/"
        )
    return classes


def _describe_name(folder: Path) -> str:
    """A folder's name with escapes for its letters, its Unicode form, and its number of files."""
    form = "composed" if unicodedata.is_normalized("NFC", folder.name) else "decomposed"
    return f"{folder.name!a} ({form}, {count(len(list_entries(folder)), 'file')})"


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in SPLIT_NAMES
