"""`mnft data check`: what it finds, what makes it fail, and what a script reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import write_image
from typer.testing import Result

from mnft.config.data import DataConfig
from mnft.data.check.findings import Finding
from mnft.data.check.report import CheckReport, check_dataset
from mnft.data.prepare import prepare_manifest
from mnft.errors import DataError
from mnft.tasks.classify.labels import RULES

Cli = Callable[..., Result]
Make = Callable[..., Path]


# The folders here hold a few tiny images, which test_check_images.py looks at.
SIZES = {"few_images", "small_image"}

Facts = tuple[str, bool, str, tuple[str, ...]]


def check(root: Path, config: DataConfig | None = None) -> CheckReport:
    return check_dataset(config or DataConfig(root=str(root)), RULES, lambda *_: None).report


def findings(root: Path) -> list[Finding]:
    return [f for f in check(root).findings if f.kind not in SIZES]


def only(root: Path) -> Finding:
    """The one finding of a folder, but for those on sizes."""
    (finding,) = findings(root)
    return finding


def facts(finding: Finding) -> Facts:
    return finding.kind, finding.is_problem, finding.message, finding.paths


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def test_nothing_to_find(make_folder: Make) -> None:
    root = make_folder(splits=("train", "val", "test"), per_class=3)
    report = check(root)
    assert findings(root) == []
    assert report.splits == ("train", "val", "test")
    assert report.counts == {
        split: {"blue": 3, "green": 3, "red": 3} for split in ("train", "val", "test")
    }


def test_progress(make_folder: Make) -> None:
    steps: list[tuple[int, int]] = []
    config = DataConfig(root=str(make_folder(per_class=3)))
    check_dataset(config, RULES, lambda done, total: steps.append((done, total)))
    assert steps == [(number, 9) for number in range(1, 10)]


def test_unreadable(make_folder: Make) -> None:
    root = make_folder(per_class=4)
    (root / "red/bad.jpg").write_bytes(b"<html>")
    (root / "red/gone.jpg").symlink_to("nowhere.jpg")
    assert [facts(f) for f in findings(root)] == [
        ("unreadable", True, "not an image of a known type", ("red/bad.jpg",)),
        ("unreadable", True, "cannot be read: No such file or directory", ("red/gone.jpg",)),
    ]
    assert check(root).counts == {"all": {"blue": 4, "green": 4, "red": 4}}


def test_leak(make_folder: Make) -> None:
    root = make_folder(splits=("train", "val"), per_class=3)
    copy(root / "train/red/000.png", root / "val/red/x.png")
    what = "the same image in train and val"
    paths = ("train/red/000.png", "val/red/x.png")
    assert facts(only(root)) == ("leak", True, what, paths)


@pytest.mark.parametrize("other", ["RED", "r-e d", "Red "])
def test_classes_that_are_hard_to_tell_apart(make_folder: Make, other: str) -> None:
    root = make_folder()
    write_image(root / other / "x.png", (220, 30, 20), seed=77)
    if len(list(root.iterdir())) == 3:
        pytest.skip("this file system does not tell the two names apart")
    (finding,) = [f for f in check(root).findings if f.kind == "similar_classes"]
    assert not finding.is_problem
    assert set(finding.paths) == {other, "red"}
    assert "differ only in case, spaces or signs" in finding.message


def test_signs_and_letters_are_classes_of_their_own(make_folder: Make) -> None:
    root = make_folder()
    for number, name in enumerate(("+", "-", "redder")):
        write_image(root / name / "x.png", (220, 30, 20), seed=77 + number)
    assert not [f for f in check(root).findings if f.kind == "similar_classes"]


def test_label_conflict(make_folder: Make) -> None:
    root = make_folder(per_class=3)
    copy(root / "red/000.png", root / "blue/x.png")
    what = "the same image in classes blue and red"
    assert facts(only(root)) == ("label_conflict", True, what, ("blue/x.png", "red/000.png"))


def test_duplicate_is_no_problem(make_folder: Make) -> None:
    root = make_folder(per_class=3)
    copy(root / "red/000.png", root / "red/x.png")
    copy(root / "red/000.png", root / "red/y.png")
    found = only(root)
    assert (found.kind, found.is_problem) == ("duplicate", False)
    assert found.paths == ("red/000.png", "red/x.png", "red/y.png")


def test_class_sets(make_folder: Make) -> None:
    root = make_folder(splits=("train", "val"), per_class=3)
    (root / "val/red").rename(root / "val/rot")
    assert [facts(f) for f in findings(root)] == [
        ("class_set", True, "val has classes that train has not: rot", ()),
        ("class_set", False, "val has no images of: red", ()),
    ]


def test_no_train_folder_and_one_class(make_folder: Make, tmp_path: Path) -> None:
    found = only(make_folder("a", splits=("val", "test"), per_class=1))
    assert (found.kind, found.message) == ("class_set", "there is no train split")
    root = make_folder("b", per_class=3)
    for name in ("red", "green"):
        (root / name).rename(tmp_path / name)
    found = only(root)
    assert (found.kind, found.is_problem) == ("class_set", True)
    assert found.message.startswith("one class (blue)")


def test_empty_class(make_folder: Make) -> None:
    root = make_folder(per_class=3)
    (root / "zebra").mkdir()
    assert facts(only(root)) == ("empty_class", True, "no usable image", ("zebra",))
    (root / "zebra/1.jpg").write_bytes(b"")
    kinds = [(f.kind, f.paths) for f in findings(root)]
    assert kinds == [("unreadable", ("zebra/1.jpg",)), ("empty_class", ("zebra",))]


def test_empty_class_of_a_split(make_folder: Make) -> None:
    root = make_folder(splits=("train", "val"), per_class=3)
    (root / "train/zebra").mkdir()
    assert facts(only(root)) == ("empty_class", True, "no usable image", ("train/zebra",))


@pytest.mark.parametrize(("splits", "smallest"), [((), 3), (("train", "test"), 2)])
def test_small_class(make_folder: Make, splits: tuple[str, ...], smallest: int) -> None:
    """What the check passes can be split, and what it refuses cannot."""
    root = make_folder("fits", splits=splits, per_class=smallest)
    assert findings(root) == []
    prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)
    root = make_folder("too small", splits=splits, per_class=smallest)
    file = next((root / "train" if splits else root).rglob("red/000.png"))
    copy(file.with_name("001.png"), file)  # as many files, fewer images
    assert [f.kind for f in check(root).findings if f.is_problem] == ["small_class"]
    with pytest.raises(DataError, match="too few to split"):
        prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)


@pytest.mark.parametrize(
    ("fractions", "per_class", "fits"),
    [
        ({"val_fraction": 0.4, "test_fraction": 0.4}, 4, False),
        ({"val_fraction": 0.4, "test_fraction": 0.4}, 5, True),
        ({"val_fraction": 0.4, "test_fraction": 0.2}, 5, True),
        ({"test_fraction": 0.0}, 2, True),
    ],
)
def test_small_class_depends_on_the_fractions_as_in_training(
    make_folder: Make, fractions: dict[str, float], per_class: int, fits: bool
) -> None:
    root = make_folder(per_class=per_class)
    copy(root / "red/000.png", root / "red/001.png")  # one image fewer than files
    write_image(root / "red/extra.png", (200, 10, 10), seed=99)
    config = DataConfig(root=str(root), **fractions)
    report = check(root, config)
    assert ("small_class" not in {f.kind for f in report.findings}) == fits
    if fits:
        prepare_manifest(config, RULES, lambda *_: None)
    else:
        with pytest.raises(DataError, match="too few to split"):
            prepare_manifest(config, RULES, lambda *_: None)


def test_loose_images(make_folder: Make) -> None:
    root = make_folder(per_class=3)
    copy(root / "red/000.png", root / "loose.png")
    (root / "notes.txt").write_text("x")
    found = only(root)
    assert (found.kind, found.is_problem, found.paths) == ("no_class", False, ("loose.png",))
    assert check(root).ignored == ("loose.png", "notes.txt")


def test_problems_come_first(make_folder: Make) -> None:
    root = make_folder(per_class=3)
    copy(root / "blue/000.png", root / "blue/x.png")
    copy(root / "red/000.png", root / "green/x.png")
    assert [f.is_problem for f in findings(root)] == [True, False]
    assert [f.is_problem for f in check(root).findings] == [True, False, False, False]
    assert check(root).num_problems == 1


# The command


def test_exit_code_0(make_folder: Make, run_cli: Cli) -> None:
    result = run_cli("data", "check", make_folder(per_class=4))
    assert result.exit_code == 0
    assert "no problems" in result.stderr
    table = [line.split() for line in result.stdout.splitlines()]
    assert table == [
        ["class", "all"],
        ["blue", "4"],
        ["green", "4"],
        ["red", "4"],
        ["in", "all", "12"],
    ]


def test_exit_code_3(make_folder: Make, run_cli: Cli) -> None:
    root = make_folder(per_class=4)
    (root / "red/a, b.jpg").write_bytes(b"")
    (root / "red/notes.txt").write_text("x")
    result = run_cli("data", "check", root)
    assert result.exit_code == 3
    assert "warning: unreadable: red/a, b.jpg: the file is empty" in result.stderr
    assert "not taken as images: 1 file (red/notes.txt)" in result.stderr
    assert f"error: {root}: 1 problem\n" in result.stderr
    assert "a, b.jpg" not in result.stdout


def test_json(make_folder: Make, run_cli: Cli) -> None:
    root = make_folder(splits=("train", "val"), per_class=3)
    copy(root / "train/red/000.png", root / "val/red/x.png")
    result = run_cli("data", "check", root, "--json")
    assert result.exit_code == 3
    content = json.loads(result.stdout)
    assert content["root"] == str(root)
    assert content["splits"] == ["train", "val"]
    assert content["counts"] == {
        "train": {"blue": 3, "green": 3, "red": 3},
        "val": {"blue": 3, "green": 3, "red": 4},
    }
    assert content["problems"] == 1
    assert content["findings"][0] == {
        "kind": "leak",
        "is_problem": True,
        "message": "the same image in train and val",
        "paths": ["train/red/000.png", "val/red/x.png"],
        "leave_out": ["train/red/000.png"],
        "look_at": [],
    }
    assert {f["kind"] for f in content["findings"][1:]} == SIZES
    assert 0.3 < content["mean"][0] < 0.45
    assert content["not_compared"] == 19
    clean = run_cli("data", "check", make_folder("clean", per_class=3), "--json")
    assert clean.exit_code == 0
    assert {f["kind"] for f in json.loads(clean.stdout)["findings"]} == SIZES


def test_a_config_names_the_folder(make_folder: Make, run_cli: Cli, tmp_path: Path) -> None:
    root = make_folder(per_class=3)
    (tmp_path / "my.yaml").write_text(f"data:\n  root: {root.name}\n")
    result = run_cli("data", "check", "my.yaml", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["counts"]["all"]["red"] == 3


def test_set_changes_the_config(make_folder: Make, run_cli: Cli, tmp_path: Path) -> None:
    root = make_folder(per_class=2)
    (tmp_path / "my.yaml").write_text("data:\n  root: nowhere\n")
    own = ("data", "check", "my.yaml", "--set", f"data.root={root.name}")
    assert run_cli(*own).exit_code == 3
    assert run_cli(*own, "--set", "data.test_fraction=0").exit_code == 0
    plain = run_cli("data", "check", root, "--set", "data.test_fraction=0")
    assert plain.exit_code == 2
    assert "is not a config" in plain.stderr


def test_unreadable_files_that_are_skipped_are_no_problem(
    make_folder: Make, run_cli: Cli, tmp_path: Path
) -> None:
    root = make_folder(per_class=3)
    (root / "red/bad.jpg").write_bytes(b"")
    (tmp_path / "my.yaml").write_text(f"data:\n  root: {root.name}\n")
    failed = run_cli("data", "check", "my.yaml")
    assert failed.exit_code == 3
    assert "data.on_bad_image: skip" in failed.stderr
    skipped = run_cli("data", "check", "my.yaml", "--set", "data.on_bad_image=skip")
    assert skipped.exit_code == 0
    assert "unreadable: red/bad.jpg: the file is empty" in skipped.stderr


def test_a_missing_root_that_can_be_fetched(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("data:\n  root: my data\n  fetch: digits\n")
    result = run_cli("data", "check", "my.yaml")
    assert result.exit_code == 1
    assert "my data: no such folder" in result.stderr
    assert "mnft data fetch digits --to 'my data'" in result.stderr


def test_wrong_targets(run_cli: Cli, tmp_path: Path) -> None:
    result = run_cli("data", "check", "nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nowhere: no such folder" in result.stderr
    assert run_cli("data", "check", "nowhere.yaml").exit_code == 2
    (tmp_path / "bad.yaml").write_text("data:\n  rot: x\n")
    assert run_cli("data", "check", "bad.yaml").exit_code == 2


def test_many_findings_are_cut_short_but_not_in_json(make_folder: Make, run_cli: Cli) -> None:
    root = make_folder(per_class=3)
    for number in range(60):
        (root / f"red/bad{number:02d}.jpg").write_bytes(b"")
    for number in range(20):
        copy(root / "blue/000.png", root / f"blue/copy{number:02d}.png")
    result = run_cli("data", "check", root)
    assert result.stderr.count("warning: unreadable: red/") == 10
    assert "warning: unreadable: and 50 more; --json lists all" in result.stderr
    assert ["unreadable", "problem", "60", "60"] in [x.split() for x in result.stderr.splitlines()]
    assert "and 16 more: the same image more than once" in result.stderr
    content = json.loads(run_cli("data", "check", root, "--json").stdout)
    assert [f["kind"] for f in content["findings"]].count("unreadable") == 60
    assert len(content["findings"][-1]["paths"]) == 21


def test_a_name_cannot_draw_on_the_terminal(make_folder: Make, run_cli: Cli) -> None:
    root = make_folder(per_class=3)
    (root / "red/\x1b[31mbad.jpg").write_bytes(b"")
    result = run_cli("data", "check", root)
    assert result.exit_code == 3
    assert "\x1b" not in result.stderr + result.stdout


def test_training_warns_of_one_image_in_two_classes(
    make_folder: Make, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder()
    config = DataConfig(root=str(root), store="off")
    prepare_manifest(config, RULES, lambda *_: None)
    assert "two classes" not in caplog.text
    copy(root / "red/000.png", root / "red/copy.png")  # a copy in one class is no conflict
    copy(root / "red/001.png", root / "blue/x.png")
    prepare_manifest(config, RULES, lambda *_: None)
    assert "1 image stands with two labels and the same bytes, such as" in caplog.text
    assert "blue/x.png and red/001.png" in caplog.text
    copy(root / "red/002.png", root / "green/y.png")
    prepare_manifest(config, RULES, lambda *_: None)
    assert "2 images stand with two labels" in caplog.text
