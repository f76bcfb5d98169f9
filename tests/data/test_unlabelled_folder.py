"""Images without labels: which of a folder are used, and what keeps the others out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mnft.config.data import DataConfig
from mnft.data.lineage import shorten
from mnft.data.manifest import UNLABELLED, Manifest, list_changes, load_manifest, save_manifest
from mnft.data.prepare import prepare_manifest
from mnft.data.unlabelled import add_unlabelled
from mnft.errors import DataError
from mnft.tasks import load_label_rules


def quiet(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def manifest(make_folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Manifest:
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "cache"))
    root = make_folder(splits=("train", "val", "test"), per_class=3)
    return prepare_manifest(DataConfig(root=str(root)), load_label_rules("classify"), quiet)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five different images, two of them in a folder of their own."""
    images = tmp_path / "more"
    for index, name in enumerate(("a.png", "b.png", "c.png", "deep/d.png", "deep/e.png")):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (10 * index, 99, 1)).save(images / name)
    return images


def add(manifest: Manifest, folder: Path, **changes: str) -> Manifest:
    config = DataConfig(root=str(manifest.root), **changes)
    return add_unlabelled(manifest, folder, config, quiet)


def test_they_are_a_split_of_their_own_that_nothing_is_judged_on(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    more = add(manifest, folder)
    found = more.split(UNLABELLED)
    assert [Path(sample.path).name for sample in found] == [f"{name}.png" for name in "abcde"]
    assert {sample.label for sample in found} == {""}
    assert more.splits == manifest.splits == ("train", "val", "test")
    assert more.labels == manifest.labels
    for split in more.splits:
        assert more.split(split) == manifest.split(split)
    assert {shorten(sample.sha256) for sample in found} <= more.trained_on
    assert more.fingerprint != manifest.fingerprint
    save_manifest(more, tmp_path / "split.json")
    assert load_manifest(tmp_path / "split.json") == more
    assert list_changes(more, found) == []
    (folder / "a.png").write_bytes(b"other")
    assert len(list_changes(more, found)) == 1


def test_what_stands_in_the_data_set_or_twice_is_left_out_and_said(
    manifest: Manifest, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val", "test"):
        shutil.copy(manifest.root / manifest.split(split)[0].path, folder / f"of_{split}.png")
    shutil.copy(folder / "a.png", folder / "again.png")
    with caplog.at_level(logging.WARNING):
        more = add(manifest, folder)
    assert len(more.split(UNLABELLED)) == 5
    own = {sample.sha256 for sample in manifest.samples}
    assert own.isdisjoint(sample.sha256 for sample in more.split(UNLABELLED))
    reasons = {Path(entry.path).name: entry.reason for entry in more.left_out}
    assert reasons["of_val.png"] == "the same image is in val"
    assert reasons["of_test.png"] == "the same image is in test"
    assert "1 image left out: the same image is in val" in caplog.text
    assert "1 image left out: the same image is in train" in caplog.text
    assert "1 image left out: the same image is without a label already" in caplog.text


def test_a_file_that_does_not_decode_fails_or_is_left_out(manifest: Manifest, folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match="1 of 6 files cannot be decoded") as error:
        add(manifest, folder)
    assert "broken.png" in error.value.message
    assert error.value.key == "distill.images"
    more = add(manifest, folder, on_bad_image="skip")
    assert len(more.split(UNLABELLED)) == 5
    assert [Path(entry.path).name for entry in more.left_out] == ["broken.png"]


def test_folders_without_usable_images_are_refused(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "found no images"),
        (folder / "a.png", "is a file, expected a folder"),
        (manifest.root, "found 27 images, all left out"),
    ):
        with pytest.raises(DataError, match=message) as error:
            add(manifest, path)
        assert error.value.key == "distill.images"
