"""What `mnft data check` says of sizes, endings, colours, counts and look-alikes, and what not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import build, draw
from typer.testing import Result

from mnft.config.data import DataConfig
from mnft.data.check import images as check_images
from mnft.data.check.findings import Finding, TrainingNeeds
from mnft.data.check.image_stats import inspect_with_stats
from mnft.data.check.report import CheckReport, check_dataset
from mnft.tasks.classify.labels import RULES

Cli = Callable[..., Result]


def check(root: Path, needs: TrainingNeeds | None = None) -> CheckReport:
    return check_dataset(DataConfig(root=str(root)), RULES, lambda *_: None, needs).report


def of_kind(root: Path, kind: str, needs: TrainingNeeds | None = None) -> list[Finding]:
    return [finding for finding in check(root, needs).findings if finding.kind == kind]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return build(tmp_path / "images", {"cat": 4, "dog": 4})


def test_wrong_endings(root: Path) -> None:
    assert of_kind(root, "wrong_ending") == []
    image = draw(7)
    for name, kind in (("x.jpg", "PNG"), ("y.JPEG", "PNG"), ("z.png", "GIF"), ("ok.JFIF", "JPEG")):
        image.save(root / "cat" / name, format=kind)
    found = of_kind(root, "wrong_ending")
    assert [(f.paths, f.is_problem) for f in found] == [
        (("cat/z.png",), False),
        (("cat/y.JPEG",), False),
        (("cat/x.jpg",), False),
    ]
    assert found[2].message.startswith("PNG content under the extension .jpg")


def test_every_type_has_its_endings() -> None:
    from mnft.data.decode import _FORMATS
    from mnft.data.folder import IMAGE_SUFFIXES

    assert set(check_images._EXTENSIONS) == {*_FORMATS, "HEIF"}  # of the extra `heic`
    assert set.union(*check_images._EXTENSIONS.values()) == IMAGE_SUFFIXES


@pytest.mark.parametrize(("side", "small"), [(64, 0), (128, 0), (129, 8), (224, 8)])
def test_images_much_smaller_than_the_input(root: Path, side: int, small: int) -> None:
    found = of_kind(root, "small_image", TrainingNeeds(input_size=side))
    assert sum(len(f.paths) for f in found) == small
    assert all(f"input of {side} pixels" in f.message for f in found)


def test_extreme_sizes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(1, (320, 40)).save(root / "cat/eight.png")
    assert of_kind(root, "extreme_shape") == []
    draw(2, (40, 324)).save(root / "cat/long.png")
    (found,) = of_kind(root, "extreme_shape")
    assert found.paths == ("cat/long.png",)
    monkeypatch.setattr(check_images, "_LARGE_PIXELS", 96 * 64)
    (large,) = of_kind(root, "large_image")
    assert large.paths == ("cat/eight.png", "cat/long.png")


def test_the_size_is_that_of_the_whole_image(tmp_path: Path) -> None:
    """Large JPEGs are decoded at a part of their size."""
    draw(1, (2400, 1800)).save(tmp_path / "x.jpg")
    assert inspect_with_stats(tmp_path / "x.jpg").inspection.size == (2400, 1800)


def test_grey_among_colour(root: Path) -> None:
    assert of_kind(root, "grey_image") == []
    draw(5).convert("L").save(root / "cat/grey.png")
    draw(6).convert("L").convert("RGB").save(root / "cat/grey.jpg", quality=60)
    (found,) = of_kind(root, "grey_image")
    assert found.paths == ("cat/grey.jpg", "cat/grey.png")
    assert found.message == "2 grey among 8 in colour"
    assert of_kind(root, "grey_image", TrainingNeeds(is_grey=True)) == []


def test_colour_among_grey_and_all_grey(root: Path) -> None:
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert {f.kind for f in check(root).findings} == {"few_images", "small_image"}
    draw(1).save(root / "dog/colour.png")
    (found,) = of_kind(root, "colour_image")
    assert found.paths == ("dog/colour.png",)


def test_mean_and_std_are_those_of_the_pixels(tmp_path: Path) -> None:
    pixels = []
    for number, name in enumerate(("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")):
        values = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / name)
        pixels.append(values / 255)
    report = check(tmp_path)
    learned = np.stack(pixels[:2])  # of the train split alone
    assert np.allclose(report.mean, learned.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(report.std, learned.std((0, 1, 2)), atol=1e-4)


def test_imbalance_and_few_images(tmp_path: Path) -> None:
    even = build(tmp_path / "even", {"cat": 20, "dog": 40})
    kinds = {f.kind for f in check(even).findings}
    assert not kinds & {"imbalance", "few_images"}
    uneven = build(tmp_path / "uneven", {"cat": 5, "dog": 24, "cow": 25})
    (found,) = of_kind(uneven, "imbalance")
    assert (found.paths, found.is_problem) == (("cow", "cat"), False)
    assert "5.0 times as many (named from 5); train.sampler: balanced" in found.message
    assert of_kind(uneven, "imbalance", TrainingNeeds(is_balanced=True)) == []
    (few,) = of_kind(uneven, "few_images")
    assert few.paths == ("cat",)
    assert few.message == "fewer than 20 images to learn from: cat 5"


# The same picture


def test_near_copies_in_one_class_two_classes_and_two_splits(tmp_path: Path) -> None:
    root = build(tmp_path / "images", {"train/cat": 3, "train/dog": 3, "val/cat": 3, "val/dog": 3})
    assert not [f for f in check(root).findings if f.kind.startswith("near")]
    draw(0, (96, 64)).save(root / "train/cat/again.jpg", quality=80)
    draw(1, (96, 64)).save(root / "train/dog/again.jpg", quality=80)
    draw(2, (96, 64)).save(root / "val/cat/again.jpg", quality=80)
    draw(2002, (96, 64)).convert("L").save(root / "train/cat/grey.png")
    found = [f for f in check(root).findings if f.kind.startswith("near")]
    facts = [(f.kind, f.is_problem, f.paths, f.leave_out, f.look_at) for f in found]
    assert sorted(facts) == [
        (
            *("near_conflict", True, ("train/cat/001.png", "train/dog/again.jpg")),
            *(("train/cat/001.png", "train/dog/again.jpg"), ()),
        ),
        (
            *("near_duplicate", False, ("train/cat/000.png", "train/cat/again.jpg")),
            *(("train/cat/again.jpg",), ()),
        ),
        (
            *("near_leak", False, ("train/cat/grey.png", "val/cat/002.png")),
            *((), ("train/cat/grey.png",)),
        ),
        (
            *("near_leak", True, ("train/cat/002.png", "val/cat/again.jpg")),
            *(("train/cat/002.png",), ()),
        ),
    ]
    messages = {f.kind: f.message for f in found if f.is_problem}
    assert messages["near_leak"] == "the same image, saved again, in train and val"


def test_look_alikes_by_nature_are_one_finding(tmp_path: Path) -> None:
    """Pictures of one thing with small changes, as digits are."""
    root = tmp_path / "images"
    base = np.asarray(draw(0, (64, 64))).astype(np.int16)
    for label in ("one", "two"):
        (root / label).mkdir(parents=True)
        for index in range(15):
            other = np.asarray(draw(100 + index + 50 * (label == "two"), (64, 64)))
            mixed = np.clip(base + (other.astype(np.int16) - 128) // 6, 0, 255).astype(np.uint8)
            Image.fromarray(mixed).save(root / label / f"{index}.png")
    kinds = [f.kind for f in check(root).findings if f.kind not in {"small_image", "few_images"}]
    assert kinds == ["many_alike"]


def test_the_demo_has_no_problem(run_cli: Cli) -> None:
    assert run_cli("data", "fetch", "digits", "--to", "data/digits").exit_code == 0
    result = run_cli("data", "check", "data/digits")
    assert result.exit_code == 0
    assert "near_" not in result.stderr
    assert "1,797 images are too small or too plain to be compared" in result.stderr
    config = Path(__file__).parents[3] / "configs/digits.yaml"
    result = run_cli("data", "check", config)
    assert result.exit_code == 0, result.stderr
    assert "near_" not in result.stderr


def test_training_looks_no_closer_than_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnft.data.prepare import prepare_manifest

    def fail(*_: object) -> None:
        raise AssertionError("the figures are for the check alone")

    monkeypatch.setattr("mnft.data.check.image_stats.compute_stats", fail)
    prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)
    with pytest.raises(AssertionError, match="for the check alone"):
        check(root)


def test_each_file_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Path.read_bytes

    def count(path: Path) -> bytes:
        read.append(path.name if path.suffix == ".png" else "")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    check(root)
    assert len([name for name in read if name]) == 8
