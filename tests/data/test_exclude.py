"""The list of files to leave out: written by --fix, read by data.exclude."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import draw, write_image
from typer.testing import Result

from mnft.config.data import DataConfig
from mnft.data.check.findings import Finding
from mnft.data.check.leave_out import write_list
from mnft.data.check.report import check_dataset
from mnft.data.exclude import exclude, read_list
from mnft.data.manifest import load_manifest
from mnft.data.prepare import prepare_manifest
from mnft.data.readers import class_folders
from mnft.errors import ConfigError, DataError
from mnft.tasks.classify.labels import RULES

Cli = Callable[..., Result]
Make = Callable[..., Path]


def finding(*leave_out: str, look_at: tuple[str, ...] = (), kind: str = "duplicate") -> Finding:
    return Finding(kind, False, "why", (*leave_out, *look_at, "kept.png"), leave_out, look_at)


def active(path: Path) -> list[str]:
    return [x for x in path.read_text().splitlines() if x and not x.startswith("#")]


def test_odd_names_come_back(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "#1.png",
        '"x".png',
        " blank .png",
        "two\nlines.png",
        "tab\t.png",
        "r\r.png",
    ]
    names += ["花/ü.png", "-x.png", "back\\slash.png", "x\u2028y.png", "\x1b[31m.png"]
    assert write_list(tmp_path / "list.txt", [finding(*names)]) == len(names)
    assert sorted(read_list(tmp_path / "list.txt")) == sorted(names)
    assert "\x1b" not in (tmp_path / "list.txt").read_text()


def test_a_reason_cannot_become_a_path(tmp_path: Path) -> None:
    bad = Finding("unreadable", True, "one\ntwo.png\u2028three.png", ("a.png",), ("a.png",))
    write_list(tmp_path / "list.txt", [bad])
    assert read_list(tmp_path / "list.txt") == ["a.png"]


def test_doubtful_files_are_comments(tmp_path: Path) -> None:
    write_list(tmp_path / "list.txt", [finding("a.png", look_at=("b.png",))])
    assert read_list(tmp_path / "list.txt") == ["a.png"]
    text = (tmp_path / "list.txt").read_text()
    assert "# look: b.png\n" in text
    assert "# duplicate: why (stays: kept.png)\n" in text


def test_a_list_is_added_to_and_other_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    write_list(path, [finding("a.png", look_at=("b.png",))])
    path.write_text(path.read_text().replace("a.png\n", "") + "mine.png")
    assert write_list(path, [finding("c.png", look_at=("b.png",)), finding("mine.png")]) == 1
    assert read_list(path) == ["mine.png", "c.png"]
    assert path.read_text().count("# look: b.png") == 1
    other = tmp_path / "photo list.txt"
    other.write_text("my own notes\n")
    with pytest.raises(ConfigError, match="no list of files to leave out"):
        write_list(other, [finding("a.png")])
    assert other.read_text() == "my own notes\n"


def test_a_hand_written_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b'# mine\r\n\r\n./a/b.png\r\n  c.png  \r\n"d\\n.png"\r\n')
    assert read_list(tmp_path / "list.txt") == ["a/b.png", "c.png", "d\n.png"]
    (tmp_path / "list.txt").write_text('ok.png\n"broken\n')
    with pytest.raises(ConfigError, match=r"list.txt, line 2: not a JSON string"):
        read_list(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        read_list(tmp_path / "list.txt")


def test_a_class_without_images_is_empty(make_folder: Make, tmp_path: Path) -> None:
    root = make_folder(per_class=2)
    (tmp_path / "list.txt").write_text("red/000.png\nred/001.png\nred/002.png\n")
    found = exclude(class_folders.read(root), str(tmp_path / "list.txt"), RULES)
    assert found.scan.empty_classes == ((None, "red"),)
    assert (found.excluded, found.unknown) == (["red/000.png", "red/001.png"], ["red/002.png"])
    config = DataConfig(root=str(root), exclude=str(tmp_path / "list.txt"))
    with pytest.raises(DataError, match="no usable image in class red"):
        prepare_manifest(config, RULES, lambda *_: None)
    report = check_dataset(config, RULES, lambda *_: None).report
    kinds = {finding.kind for finding in report.findings}
    assert {"empty_class", "exclude_unknown"} <= kinds


def test_training_leaves_the_files_out_and_says_so(
    make_folder: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(per_class=5)
    (root / "red/000.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("red/000.png\ngone.png\n")
    config = DataConfig(root=str(root), exclude=str(tmp_path / "list.txt"))
    manifest = prepare_manifest(config, RULES, lambda *_: None)
    assert len(manifest.samples) == 14
    (left,) = manifest.left_out
    assert (left.path, left.reason) == ("red/000.png", f"excluded by {config.exclude}")
    assert "1 paths of" in caplog.text
    assert "gone.png" in caplog.text
    assert "left out: red/000.png" not in caplog.text  # that is what was asked for


def spoil(root: Path) -> None:
    """One of each kind of what --fix mends."""
    for number, label in enumerate(("cat", "dog")):
        for split in ("train", "val"):
            for index in range(6):
                image = draw(100 * number + 10 * (split == "val") + index)
                path = root / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    (root / "train/cat/bad.jpg").write_bytes(b"")
    (root / "train/cat/copy.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "train/cat/leak.png").write_bytes((root / "val/cat/0.png").read_bytes())
    (root / "train/cat/conflict.png").write_bytes((root / "train/dog/5.png").read_bytes())
    draw(10).save(root / "train/cat/leak again.jpg", quality=60)
    draw(101).save(root / "train/cat/conflict again.jpg", quality=60)


def test_check_then_fix_then_train_then_check(run_cli: Cli, tmp_path: Path) -> None:
    spoil(tmp_path / "images")
    (tmp_path / "my.yaml").write_text(
        "data: {root: images, img_size: 32}\n"
        "model: {name: mobilenetv3_small_050, pretrained: false}\n"
        "train: {epochs: 1, precision: fp32}\nrun: {name: one}\n"
    )
    before = run_cli("data", "check", "my.yaml", "--fix", "out.txt")
    assert before.exit_code == 3
    assert "8 more files to leave out in out.txt; use it with data.exclude" in before.stderr
    assert sorted(active(tmp_path / "out.txt")) == [
        *("train/cat/bad.jpg", "train/cat/conflict again.jpg", "train/cat/conflict.png"),
        *("train/cat/copy.png", "train/cat/leak again.jpg", "train/cat/leak.png"),
        *("train/dog/1.png", "train/dog/5.png"),
    ]
    own = ("--set", "data.exclude=out.txt")
    after = run_cli("data", "check", "my.yaml", *own, "--json", "--fix", "out.txt")
    assert after.exit_code == 0, after.stderr
    content = json.loads(after.stdout)
    assert (len(content["excluded"]), content["fix"]["added"]) == (8, 0)
    assert len(active(tmp_path / "out.txt")) == 8  # the list itself did not lose them
    assert len(list((tmp_path / "images").rglob("*.*"))) == 30  # nothing was deleted
    assert run_cli("train", "my.yaml").exit_code == 1
    trained = run_cli("train", "my.yaml", *own)
    assert trained.exit_code == 0, trained.stderr
    left_out = load_manifest(tmp_path / "runs/one/split.json").left_out
    assert {entry.reason for entry in left_out} == {"excluded by out.txt"}
    assert len(left_out) == 8
    changed = run_cli("train", "--resume", "runs/one", "--set", "data.exclude=null")
    assert changed.exit_code == 2
    assert "data.exclude cannot change" in changed.stderr
    (tmp_path / "out.txt").unlink()  # the run has its split
    again = run_cli("train", "--resume", "runs/one", "--set", "train.epochs=2")
    assert again.exit_code == 0, again.stderr


def test_a_missing_list_names_the_key(run_cli: Cli, make_folder: Make, tmp_path: Path) -> None:
    make_folder(per_class=4)
    (tmp_path / "my.yaml").write_text("data:\n  root: images\n  exclude: gone.txt\n")
    for words in (("data", "check", "my.yaml"), ("train", "my.yaml")):
        result = run_cli(
            *words, *(("--set", "model.pretrained=false") if words[0] == "train" else ())
        )
        assert result.exit_code == 2
        assert "line 3, data.exclude: gone.txt: no such file" in result.stderr
        assert "--fix FILE" in result.stderr


def test_a_split_that_leaks_is_fixed(run_cli: Cli, tmp_path: Path) -> None:
    """In a folder without splits the copies are those that the split of the config tears apart."""
    root = tmp_path / "images"
    for number, label in enumerate(("cat", "dog")):
        (root / label).mkdir(parents=True)
        for index in range(8):
            image = draw(100 * number + index)
            image.save(root / label / f"{index}.png")
            image.save(root / label / f"{index} again.jpg", quality=70)
    config = DataConfig(root=str(root))
    splits = {s.path: s.split for s in prepare_manifest(config, RULES, lambda *_: None).samples}
    torn = {p for p in splits if p.endswith("png") and splits[p] != splits[p[:-4] + " again.jpg"]}
    assert torn
    report = check_dataset(config, RULES, lambda *_: None).report
    near = [f for f in report.findings if f.kind == "near_leak"]
    assert {path for f in near for path in f.paths if path.endswith("png")} == torn
    assert all(f.is_problem and "which the split would put into" in f.message for f in near)
    whole = [f for f in report.findings if f.kind == "near_duplicate"]
    assert (len(near) + len(whole), any(f.is_problem for f in whole)) == (16, False)
    assert run_cli("data", "check", "images", "--fix", "out.txt").exit_code == 3
    (tmp_path / "my.yaml").write_text("data: {root: images, exclude: out.txt, img_size: 32}\n")
    assert run_cli("data", "check", "my.yaml").exit_code == 0


def test_the_list_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.txt"
    write_list(path, [finding("a.png")])
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mnft.files._flush", fail)
    with pytest.raises(ConfigError, match="No space left"):
        write_list(path, [finding("b.png")])
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.txt"]


def test_a_plain_folder_is_found_again(tmp_path: Path) -> None:
    write_image(tmp_path / "images/red/a.png", (200, 0, 0), seed=0)
    found = exclude(class_folders.read(tmp_path / "images"), None, RULES)
    assert (len(found.scan.images), found.excluded, found.unknown) == (1, (), ())
