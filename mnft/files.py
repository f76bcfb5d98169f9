"""Atomic writes: a reader sees the old file or the new one, whole, whatever happens in between."""

from __future__ import annotations

import csv
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnft.errors import ConfigError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what was written there replaces `path` at the end.

    The data is flushed to the disk before the rename. On an exception the temporary file is
    removed and `path` stays as it was.
    """
    with naming(path, _prefix(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _give_usual_permissions(temporary, 0o666)
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def naming(path: Path, prefix: str | None = None) -> Iterator[None]:
    """Let errors of the disk say which file it was; those of open files do not.

    Args:
        path: the file or folder that is written.
        prefix: beginning of the names of temporary files beside it, which tell a person nothing.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        is_temporary = prefix and str(named).startswith(str(path.parent / prefix))
        if error.errno is not None and (named is None or is_temporary):
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; a number that is not finite is an error, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `folder`; at the end it takes the place of `folder`.

    Two renames are needed where `folder` exists; a crash between them leaves the old content
    as `<name>.old`, which `recover_folder` puts back.
    """
    with temporary_folder(folder) as temporary:
        yield temporary
        _settle(temporary)
        _swap(temporary, folder)


def take_name(folder: Path, name: Path) -> bool:
    """Flush a new folder and rename it, unless there is something of that name already."""
    _settle(folder)
    if name.exists() or name.is_symlink():
        return False
    try:
        folder.rename(name)
    except OSError:
        if name.exists():  # somebody else was faster; their folder is not empty
            return False
        raise
    return True


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what a crash left of writing `paths`; to be called when nobody writes them."""
    for path in paths:
        recover_folder(path)
        _remove(_old(path))
        for leftover in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
            _remove(leftover)


def check_replaceable(target: Path, kind: str, is_earlier: Callable[[Path], bool]) -> None:
    """Refuse to replace a folder of the user with a result of a command.

    Args:
        target: the path to write to.
        kind: what will be written, such as "export".
        is_earlier: tells whether a folder that is not empty holds an earlier such result, and
            nothing else.

    Raises:
        ConfigError: something else is at `target`.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_dir() and (not any(target.iterdir()) or is_earlier(target)):
        return
    raise ConfigError(
        f"{target} exists and is not an earlier {kind}, so it is not replaced",
        hint="name a new folder: --output DIR",
    )


def holds_only(folder: Path, names: Collection[str], record: str) -> bool:
    """Whether a folder holds the file `record`, and nothing but that and `names`."""
    # What a file manager leaves (.DS_Store) is nobody's work, a .git folder is.
    entries = {
        entry.name
        for entry in folder.iterdir()
        if not (entry.name.startswith(".") and entry.is_file())
    }
    return record in entries and entries <= {record, *names}


def recover_folder(folder: Path) -> None:
    """Put back the old content of `folder` when a crash came between the renames of its swap."""
    old = _old(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Give an empty folder for what shall stand at `beside`; it is removed, unless renamed."""
    with naming(beside, _prefix(beside)):
        beside.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=beside.parent, prefix=_prefix(beside), suffix=".tmp")
        try:
            yield Path(name)
        finally:
            shutil.rmtree(name, ignore_errors=True)
    _flush(beside.parent)


def _settle(folder: Path) -> None:
    _give_usual_permissions(folder, 0o777)
    for entry in folder.rglob("*"):
        # Others write here too, and safetensors creates files as 0600.
        _give_usual_permissions(entry, 0o777 if entry.is_dir() else 0o666)
        _flush(entry)
    _flush(folder)


def _swap(new: Path, folder: Path) -> None:
    recover_folder(folder)
    old = _old(folder)
    _remove(old)
    try:
        if folder.exists() or folder.is_symlink():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        # Ctrl-C and SIGTERM come as exceptions, anywhere.
        recover_folder(folder)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _old(folder: Path) -> Path:
    # Not with_name, which refuses "." (`--ckpt .`).
    return folder.parent / f"{folder.name}.old"


def _prefix(path: Path) -> str:
    # A part of the name, for who finds a leftover; 40 characters are at most 160 bytes of 255.
    return f".{path.name[:40]}."


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _give_usual_permissions(path: Path, mode: int) -> None:
    # tempfile creates files as 0600; a colleague must be able to read the result.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(mode & ~mask)


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as UTF-8 CSV; text that others chose goes through `guard_cell` first."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
