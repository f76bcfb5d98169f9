"""Class folders: layouts, names, links, and what is refused; no pixel is read here."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnft.data.folder import FolderScan
from mnft.data.readers.class_folders import read
from mnft.errors import DataError
from mnft.tasks.classify.labels import RULES


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked at")
    return root


def found(scan: FolderScan) -> list[tuple[str, str, str | None]]:
    return [(image.path, image.label, image.split) for image in scan.images]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(root)
    assert not caught.value.message.endswith(".")
    return caught.value.message.replace(str(root), "ROOT")


# Layouts


def test_flat_folder(tmp_path: Path) -> None:
    scan = read(touch(tmp_path, "dog/b.jpg", "dog/a.jpg", "cat/c.png"))
    assert found(scan) == [
        ("cat/c.png", "cat", None),
        ("dog/a.jpg", "dog", None),
        ("dog/b.jpg", "dog", None),
    ]
    assert scan.splits == ()
    assert RULES.list_names(scan) == ["cat", "dog"]
    assert RULES.describe(scan) == "3 images of 2 classes, not split"


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("val", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("VAL", "val"),
        ("Validation", "val"),
        ("test", "test"),
        ("Testing", "test"),
    ],
)
def test_names_of_splits(tmp_path: Path, folder: str, split: str) -> None:
    root = touch(tmp_path, "Train/a/1.jpg", "Train/b/2.jpg", f"{folder}/a/3.jpg")
    scan = read(root)
    assert scan.splits == ("train", split)
    assert found(scan)[0 if folder < "Train" else -1] == (f"{folder}/a/3.jpg", "a", split)
    assert RULES.list_names(scan) == ["a", "b"]
    assert RULES.list_names(scan, split) == ["a"]


def test_three_splits(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{s}/{c}/1.jpg" for s in ("train", "val", "test") for c in "xyz"))
    scan = read(root)
    assert scan.splits == ("train", "val", "test")
    assert RULES.describe(scan) == "9 images of 3 classes in train, val, test"


def test_nested_folders_belong_to_the_class(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/2020/may/1.jpg", "a/1.jpg", "a/test/1.jpg", "b/x.jpg/y.jpg")
    assert found(read(root)) == [
        ("a/1.jpg", "a", None),
        ("a/2020/may/1.jpg", "a", None),
        ("a/test/1.jpg", "a", None),
        ("b/x.jpg/y.jpg", "b", None),
    ]


def test_endings(tmp_path: Path) -> None:
    names = ["1.JPG", "2.Jpeg", "3.PNG", "4.TIFF", "5.WebP", "6.gif", "7.BMP", "8.avif"]
    scan = read(touch(tmp_path, *(f"a/{name}" for name in names), "b/n.txt", "b/x", "b/.jpg"))
    assert [image.path for image in scan.images] == [f"a/{name}" for name in names]
    assert scan.ignored == ("b/n.txt", "b/x")
    assert scan.empty_classes == ((None, "b"),)


def test_spaces_and_other_alphabets(tmp_path: Path) -> None:
    names = ["red fox (1)", "кошка", "花", "ñandú", "-dash", '#1, "two"', "e\u0301te\u0301 x"]
    scan = read(touch(tmp_path, *(f"{name}/a b ü.JPG" for name in names)))
    assert RULES.list_names(scan) == sorted(unicodedata.normalize("NFC", name) for name in names)
    for image in scan.images:
        assert (tmp_path / image.path).is_file()


def test_class_names_are_the_same_on_a_mac(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    linux = read(touch(tmp_path / "linux", f"{composed}/1.jpg", "b/1.jpg"))
    mac = read(touch(tmp_path / "mac", f"{decomposed}/1.jpg", "b/1.jpg"))
    assert RULES.list_names(linux) == RULES.list_names(mac) == ["b", composed]
    assert (mac.root / mac.images[1].path).is_file()


def test_two_forms_of_one_class_name_in_one_folder_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, "caf\u00e9/1.jpg", "cafe\u0301/2.jpg", "cafe\u0301/3.jpg")
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system does not tell the two names apart")
    message = refusal(root)
    assert "two folders are the same class name in Unicode" in message
    assert r"'cafe\u0301' (decomposed, 2 files)" in message
    assert r"'caf\xe9' (composed, 1 file)" in message


def test_one_class_may_be_written_in_two_forms_in_two_splits(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/caf\u00e9/1.jpg", "train/b/1.jpg", "val/cafe\u0301/2.jpg")
    scan = read(root)
    assert RULES.list_names(scan, "val") == ["caf\u00e9"]
    assert RULES.list_names(scan) == ["b", "caf\u00e9"]


def test_hidden_and_system_files_are_passed_over(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        *("a/1.jpg", "b/1.jpg", "a/._1.jpg", "a/.hidden/2.jpg", "a/Thumbs.db", "a/desktop.ini"),
        *("__MACOSX/a/1.jpg", ".git/x/1.jpg", "@eaDir/a/1.jpg", ".DS_Store", "a/@eaDir/1.jpg"),
    )
    scan = read(root)
    assert [image.path for image in scan.images] == ["a/1.jpg", "b/1.jpg"]
    assert scan.ignored == ()


def test_loose_files_are_told(tmp_path: Path) -> None:
    flat = read(touch(tmp_path / "flat", "a/1.jpg", "b/1.jpg", "readme.md", "loose.jpg"))
    assert flat.ignored == ("loose.jpg", "readme.md")
    split = touch(tmp_path / "split", "train/a/1.jpg", "train/x.jpg", "val/a/1.jpg", "y.jpg")
    assert read(split).ignored == ("train/x.jpg", "y.jpg")


def test_empty_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg")
    (tmp_path / "train/b").mkdir()
    (tmp_path / "val/c/d").mkdir(parents=True)
    assert read(tmp_path).empty_classes == (("train", "b"), ("val", "c"))


# Links


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store", "cats/1.jpg", "one.jpg")
    root = touch(tmp_path / "root", "dog/2.jpg")
    (root / "cat").symlink_to(tmp_path / "store" / "cats")
    (root / "dog" / "link.jpg").symlink_to("../../store/one.jpg")
    (root / "dog" / "more").symlink_to(tmp_path / "store" / "cats")
    assert [image.path for image in read(root).images] == [
        "cat/1.jpg",
        "dog/2.jpg",
        "dog/link.jpg",
        "dog/more/1.jpg",
    ]


def test_the_root_and_a_split_may_be_links(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a/1.jpg", "b/1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train").symlink_to(tmp_path / "store")
    (tmp_path / "link").symlink_to("root")
    assert [i.path for i in read(tmp_path / "link").images] == [
        "train/a/1.jpg",
        "train/b/1.jpg",
    ]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../b/.."])
def test_circles_of_links_end(tmp_path: Path, target: str) -> None:
    root = touch(tmp_path / "root", "a/deep/1.jpg", "b/2.jpg")
    (root / "a" / "deep" / "circle").symlink_to(target)
    scan = read(root)
    assert found(scan) == [("a/deep/1.jpg", "a", None), ("b/2.jpg", "b", None)]


def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "self.jpg").symlink_to("self.jpg")
    assert [i.path for i in read(root).images][:3] == ["a/1.jpg", "a/gone.jpg", "a/self.jpg"]


def test_pipes_are_passed_over(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")  # reading it would wait for ever
    (root / "a" / "link.jpg").symlink_to("pipe.jpg")
    assert [i.path for i in read(root).images] == ["a/1.jpg", "b/1.jpg"]


# Refused


def test_no_such_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x") == "ROOT: no such folder"
    touch(tmp_path, "file")
    assert (
        refusal(tmp_path / "file")
        == "ROOT: is a file, expected a folder, or a table of labels (.csv, .tsv, .parquet)"
    )


def test_no_class_folders(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "ROOT: found no class folders, expected one folder a class"
    touch(tmp_path, "1.jpg", "2.jpg", "readme.txt")
    assert "found 2 images but no class folders" in refusal(tmp_path)


def test_loose_images_in_a_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "val/a/1.jpg")
    assert "ROOT/train: found 2 images but no class folders" in refusal(tmp_path)


def test_an_empty_split_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg")
    (tmp_path / "val").mkdir()
    assert "ROOT/val: found no class folders" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["test", "Train", "VALID", "validation"])
def test_a_split_never_becomes_a_class(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "flat", "cat/1.jpg", "dog/1.jpg", f"{name}/x/1.jpg")
    message = refusal(tmp_path / "flat")
    assert f"split folders ({name}) stand beside other folders (cat, dog)" in message
    touch(tmp_path / "split", "train/cat/1.jpg", f"train/{name}/1.jpg", "val/cat/1.jpg")
    assert "named like a split stands among the classes" in refusal(tmp_path / "split")


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg")
    assert refusal(tmp_path) == "ROOT: two folders for one split: train, val, valid"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    try:
        (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    message = refusal(tmp_path)
    assert "is not valid UTF-8" in message
    message.encode()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "b/locked/1.jpg")
    real = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:  # the superuser may read everything
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert refusal(tmp_path) == "ROOT/b/locked: cannot be read: Permission denied"


def test_an_entry_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    real = Path.is_dir

    def is_dir(self: Path) -> bool:
        if self.name == "1.jpg":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert refusal(tmp_path) == "ROOT/a/1.jpg: cannot be read: Permission denied"
