"""Atomic writes: the old content or the new one, whole, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnft import files


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_path_replaces_the_file_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    files.write_text(path, "old")
    files.write_text(path, "new \N{SNOWMAN}")
    assert path.read_text(encoding="utf-8") == "new \N{SNOWMAN}"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_on_an_exception(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def fail() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_atomic_path_keeps_the_old_file_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("no")

    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_old_file_is_there_while_the_new_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename must not cross file systems
    assert path.read_text() == "new"


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path, umask: int) -> None:
    files.write_text(tmp_path / "file.txt", "")
    with files.atomic_folder(tmp_path / "folder") as new:
        (new / "private").touch(mode=0o600)
        (new / "deep").mkdir(mode=0o700)
    assert stat.S_IMODE((tmp_path / "folder" / "private").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder" / "deep").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("name", ["x" * 250, "\N{HIRAGANA LETTER A}" * 83])
def test_long_names(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "old"
    assert (tmp_path / "link").read_text() == "new"


def test_json_has_no_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": [1.5, "é"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": [1.5, "é"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": [1.5, "é"]}


def write_folder(folder: Path, text: str) -> None:
    with files.atomic_folder(folder) as new:
        (new / f"{text}.txt").write_text(text)
        (new / "deep").mkdir()
        (new / "deep" / "file").write_text(text)


def test_atomic_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "folder"
    write_folder(folder, "old")
    write_folder(folder, "new")
    assert names(folder) == ["deep", "new.txt"]
    assert names(folder.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_folder_keeps_the_old_one_on_an_exception(
    tmp_path: Path, error: type[BaseException]
) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, "old")

    def fail() -> None:
        with files.atomic_folder(folder) as new:
            (new / "half").write_text("")
            raise error

    with pytest.raises(error):
        fail()
    assert names(folder) == ["deep", "old.txt"]
    assert names(tmp_path) == ["folder"]


def test_an_exception_between_the_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if Path(target) == folder and self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, "new")
    assert names(folder) == ["deep", "old.txt"]
    assert names(tmp_path) == ["folder"]


def test_a_crash_between_the_renames_is_recovered(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    folder.rename(tmp_path / "folder.old")  # as a power cut between the renames leaves it
    files.recover_folder(folder)
    assert names(folder) == ["deep", "old.txt"]
    assert names(tmp_path) == ["folder"]


def test_a_crash_after_the_renames_leaves_nothing_behind_in_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    write_folder(tmp_path / "folder.old", "older")
    files.recover_folder(folder)
    assert names(folder) == ["deep", "old.txt"]
    write_folder(folder, "new")
    assert names(folder) == ["deep", "new.txt"]
    assert names(tmp_path) == ["folder"]


def test_writing_again_after_a_crash_keeps_the_only_copy_until_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    folder.rename(tmp_path / "folder.old")
    with pytest.raises(ValueError, match="no"), files.atomic_folder(folder):
        raise ValueError("no")
    assert names(tmp_path / "folder.old") == ["deep", "old.txt"]
    write_folder(folder, "new")
    assert names(tmp_path) == ["folder"]


def test_a_linked_folder_can_be_replaced_twice(tmp_path: Path) -> None:
    write_folder(tmp_path / "target", "old")
    (tmp_path / "link").symlink_to("target")
    write_folder(tmp_path / "link", "new")
    write_folder(tmp_path / "link", "newer")
    assert names(tmp_path / "target") == ["deep", "old.txt"]
    assert names(tmp_path / "link") == ["deep", "newer.txt"]
    assert names(tmp_path) == ["link", "target"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_recover_takes_folders_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files.recover_folder(Path(name))
    assert names(tmp_path) == []


# Flushed: what a loss of power leaves


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that reached the disk before the content would leave an empty file."""
    done: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{handle}').readlink().name}")
        flush(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name} {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    files.write_text(tmp_path / "a.txt", "new")
    (content, name, folder) = done
    temporary = name.split()[1]
    assert content == f"flush {temporary}"
    assert name == f"rename {temporary} a.txt"
    assert folder == f"flush {tmp_path.name}"


def test_all_of_a_folder_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def fsync(handle: int) -> None:
        assert not (tmp_path / "folder").exists() or handle_path(handle) == tmp_path
        flushed.append(handle_path(handle).name)
        flush(handle)

    def handle_path(handle: int) -> Path:
        return Path(f"/proc/self/fd/{handle}").readlink()

    monkeypatch.setattr(os, "fsync", fsync)
    with files.atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner/x").write_text("x")
        (temporary / "y").write_text("y")
    assert {"x", "y", "inner", temporary.name} <= set(flushed)
    assert flushed[-1] == tmp_path.name


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_errors_name_what_is_written_not_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The name of a temporary file tells a person nothing."""
    path = tmp_path / "result"

    def write() -> None:
        if kind == "file":
            with files.atomic_path(path) as temporary:
                (temporary / "below a file").read_bytes()
        else:
            with files.atomic_folder(path) as temporary:
                (temporary / "missing").read_bytes()

    with pytest.raises(OSError, match="result") as caught:
        write()
    assert caught.value.filename == str(path)

    def refuse(*, dir: Path, prefix: str, suffix: str) -> str:
        raise PermissionError(errno.EACCES, "no", str(dir / f"{prefix}x{suffix}"))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError) as refused:
        write()
    assert refused.value.filename == str(path)
