"""What the data check says of several labels an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnft.config.schema import DataConfig
from mnft.data import readers
from mnft.data.check.findings import Finding, TrainingNeeds
from mnft.data.check.report import check_dataset
from mnft.data.folder import FolderScan, ImageFile
from mnft.tasks.multilabel.labels import RULES

OWN = {
    "class_set",
    "empty_class",
    "similar_classes",
    "always_present",
    "few_images",
    "rare_label",
    "no_label",
    "same_images",
}


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that checks a table of (label text, split, number of images)."""

    def run(*table: tuple[str, str | None, int], names: tuple[str, ...] = (), **needs: Any) -> Any:
        images = []
        for label, split, number in table:
            for _ in range(number):
                path = f"{len(images):04d}.png"
                pixels = np.random.default_rng(len(images)).integers(0, 255, (8, 8, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / path)
                images.append(ImageFile(path, label, split))
        scan = FolderScan(tmp_path, tuple(images), names=names, task="multilabel")
        monkeypatch.setattr(readers, "read", lambda _config: scan)
        checked = check_dataset(
            DataConfig(root=str(tmp_path)), RULES, lambda *_: None, TrainingNeeds(8, **needs)
        )
        return {f.kind: f for f in checked.report.findings if f.kind in OWN}

    return run


def test_a_good_table_has_no_findings_and_a_note_of_images_without_labels(check: Any) -> None:
    assert check(("a", None, 25), ("b", None, 25), ("a;b", None, 5)) == {}
    found = check(("a", None, 25), ("b", None, 25), ("", None, 4), ("?a", None, 1))
    assert list(found) == ["no_label"]
    assert found["no_label"] == Finding(
        "no_label", False, "5 images of 55 to learn from without any label", ()
    )


def test_labels_that_no_image_has_and_that_all_have(check: Any) -> None:
    found = check(("a", None, 25), ("a;b", None, 25), ("b;?a", None, 3), names=("a", "b", "c"))
    assert found["empty_class"].paths == ("c",)
    assert found["empty_class"].is_problem
    # Of the three images without it nobody knows.
    assert found["always_present"].paths == ("a",)
    assert found["always_present"].is_problem
    assert "always_present" not in check(("a", None, 25), ("b", None, 25))


def test_few_and_rare_labels(check: Any) -> None:
    found = check(("a", None, 200), ("b", None, 200), ("c;a", None, 3), ("?c", None, 40))
    assert found["few_images"].message == "fewer than 20 images to learn from: c 3"
    assert "fewer than 1% of the images have c 0.74%" in found["rare_label"].message
    assert not found["rare_label"].is_problem
    assert "rare_label" not in check(
        ("a", None, 200), ("b", None, 200), ("c;a", None, 3), is_balanced=True
    )


def test_names_that_differ_in_case_and_labels_that_always_stand_together(check: Any) -> None:
    found = check(("Hat;scarf", None, 25), ("hat", None, 25))
    assert "labels Hat and hat differ only in case" in found["similar_classes"].message
    assert found["same_images"].message == "exactly the same images have Hat and scarf"


def test_splits_with_other_labels(check: Any) -> None:
    found = check(("a", "train", 25), ("b", "train", 25), ("a", "val", 5), ("a", "test", 5))
    assert found["class_set"] == Finding("class_set", False, "test has no images of: b", ())
    found = check(("a", "train", 25), ("", "train", 25), ("a;b", "val", 5))
    assert found["class_set"].message == "val has labels that train has not: b"
    assert found["class_set"].is_problem
    assert check(("a", "val", 5))["class_set"].message == "there is no train split"
