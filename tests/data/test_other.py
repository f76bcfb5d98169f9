"""Images of none of the classes: how they join a data set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import MakeFolder, write_image

from mnft.config.data import DataConfig
from mnft.data import readers
from mnft.data.check.report import check_dataset
from mnft.data.labels import OTHER
from mnft.data.manifest import load_manifest, save_manifest
from mnft.data.prepare import prepare_manifest
from mnft.errors import DataError
from mnft.tasks import load_label_rules

RULES = load_label_rules("classify")


def silent(_done: int, _total: int) -> None:
    pass


def write_others(folder: Path, count: int, start: int = 0) -> Path:
    for number in range(count):
        path = folder / ("a" if number % 2 else "b") / f"{number}.png"
        write_image(path, (120, 120, 120), seed=500_000 + start + number)
    return folder


def prepare(root: Path, other: Path | None, **more):
    config = DataConfig(
        root=str(root), other=other and str(other), store="off", val_fraction=0.25, **more
    )
    return prepare_manifest(config, RULES, silent)


@pytest.mark.parametrize("splits", [(), ("train",), ("train", "val"), ("train", "val", "test")])
def test_others_are_split_and_leave_the_classes_where_they_are(make_folder, tmp_path, splits):
    root = make_folder(splits=splits, per_class=12)
    alone = prepare(root, None)
    manifest = prepare(root, write_others(tmp_path / "street", 12))
    assert manifest.labels == (*alone.labels, OTHER)
    assert [s for s in manifest.samples if s.label != OTHER] == list(alone.samples)
    others = [s for s in manifest.samples if s.label == OTHER]
    assert len(others) == 12
    assert {s.split for s in others} == set(alone.splits)
    assert sum(s.split == "val" for s in others) == 3
    assert all((manifest.root / s.path).is_file() for s in others)
    assert all(s.path.startswith("../street/") for s in others)
    save_manifest(manifest, tmp_path / "split.json")
    assert load_manifest(tmp_path / "split.json") == manifest


def test_others_may_have_splits_of_their_own(make_folder, tmp_path):
    root = make_folder(splits=("train", "val", "test"))
    for part, split in enumerate(("train", "val")):
        write_others(tmp_path / "street" / split, 6, start=100 * part)
    others = [s for s in prepare(root, tmp_path / "street").samples if s.label == OTHER]
    assert all(f"/street/{s.split}/" in s.path for s in others if s.split == "val")
    assert sum(s.split == "val" for s in others) == 6
    assert sum(s.split == "test" for s in others) == 1  # cut from train, as there was none


def test_through_a_link_the_whole_path_is_kept(make_folder, tmp_path):
    root = make_folder()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    link = tmp_path / "deep" / "er" / "link"
    link.symlink_to(root)
    manifest = prepare(link, write_others(tmp_path / "street", 8))
    assert all((link / s.path).is_file() for s in manifest.samples)


def test_an_empty_folder_is_refused(make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no images") as caught:
        prepare(make_folder(), tmp_path / "empty")
    assert caught.value.key == "data.other"
    with pytest.raises(DataError, match="no such folder"):
        prepare(make_folder(), tmp_path / "nothing")
    with pytest.raises(DataError, match="is a file"):
        prepare(make_folder(), next((tmp_path / "images").rglob("*.png")))


def test_a_folder_that_overlaps_the_images_is_refused(make_folder, tmp_path):
    root = make_folder()
    others = write_others(tmp_path / "street", 8)
    copy = others / "copy.png"
    copy.write_bytes((root / "red" / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"copy\.png and red/000\.png") as caught:
        prepare(root, others)
    assert caught.value.key == "data.other"
    with pytest.raises(DataError, match="same bytes"):
        prepare(root, root / "blue")


def test_the_check_names_the_overlap_and_knows_no_imbalance_of_others(make_folder, tmp_path):
    root = make_folder(splits=("train", "val"), per_class=20)
    others = write_others(tmp_path / "street", 4)
    config = DataConfig(root=str(root), other=str(others))
    report = check_dataset(config, RULES, silent).report
    assert report.counts["train"][OTHER] == 4
    kinds = {finding.kind for finding in report.findings}
    assert "few_images" in kinds
    assert not kinds & {"imbalance", "class_set", "leak", "label_conflict"}
    (others / "copy.png").write_bytes((root / "train" / "red" / "000.png").read_bytes())
    report = check_dataset(config, RULES, silent).report
    (found,) = [f for f in report.findings if f.kind == "label_conflict"]
    assert found.is_problem
    assert "_other" in found.message


def test_too_few_others_to_split_are_said(make_folder, tmp_path):
    with pytest.raises(DataError, match="_other has 2 different images, too few"):
        prepare(make_folder(), write_others(tmp_path / "street", 2))


def test_a_class_of_their_name_is_refused(make_folder: MakeFolder):
    root = make_folder()
    (root / "red").rename(root / OTHER)
    with pytest.raises(DataError, match="cannot be a label"):
        readers.read(DataConfig(root=str(root)))


def test_one_class_and_others_are_no_classifier(make_folder, tmp_path):
    root = make_folder()
    for name in ("red", "green"):
        for file in (root / name).iterdir():
            file.unlink()
        (root / name).rmdir()
    with pytest.raises(DataError, match="one class"):
        prepare(root, write_others(tmp_path / "street", 8))
