"""The split: stratified, seeded, made of contents alone, kept in split.json."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnft import files
from mnft.config.data import DataConfig
from mnft.data.decode import Inspection
from mnft.data.folder import FolderScan, ImageFile
from mnft.data.manifest import (
    Manifest,
    Sample,
    build_manifest,
    list_changes,
    load_manifest,
    save_manifest,
)
from mnft.data.prepare import prepare_manifest
from mnft.data.readers import class_folders
from mnft.errors import CheckpointError, ConfigError, DataError
from mnft.evaluation.images import list_images
from mnft.tasks.classify.labels import RULES


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def split(
    contents: dict[str, str],
    *,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    root: str = "root",
    empty: tuple[tuple[str | None, str], ...] = (),
    known: dict[str, str] | None = None,
) -> Manifest:
    """Split files given as path -> content; a content "bad" cannot be decoded."""
    images, inspections = [], {}
    for path, content in sorted(contents.items()):
        first, *rest = path.split("/")
        given = first if first in {"train", "val", "test"} else None
        images.append(ImageFile(path, rest[0] if given else first, given))
        sha256 = digest(content)
        problem = "damaged" if content.startswith("bad") else None
        inspections[path] = Inspection(sha256, None if problem else (8, 8), problem)
    scan = FolderScan(Path(root), tuple(images), empty, ())
    return build_manifest(
        scan, inspections, RULES, val_fraction=val, test_fraction=test, seed=seed, known=known
    )


def flat(per_class: int = 40, classes: str = "abc") -> dict[str, str]:
    return {f"{c}/{i:03d}.png": f"{c}{i}" for c in classes for i in range(per_class)}


def given(**counts: int) -> dict[str, str]:
    return {
        f"{part}/{c}/{i}.png": f"{part}{c}{i}"
        for part, number in counts.items()
        for c in "ab"
        for i in range(number)
    }


def where(manifest: Manifest) -> dict[str, str]:
    return {sample.sha256: sample.split for sample in manifest.samples}


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        split(*args, **kwargs)
    return caught.value.message


# Splitting in place


def test_stratified_disjoint_and_complete() -> None:
    contents = flat(40)
    manifest = split(contents)
    assert manifest.labels == ("a", "b", "c")
    assert manifest.splits == ("train", "val", "test")
    counts = Counter((s.split, s.label) for s in manifest.samples)
    assert counts == {
        (part, c): number
        for part, number in (("train", 28), ("val", 6), ("test", 6))
        for c in "abc"
    }
    assert [s.path for s in manifest.samples] == sorted(contents)
    assert sum(len(manifest.split(name)) for name in manifest.splits) == len(contents)
    assert {manifest.labels.index(s.label) for s in manifest.split("val") if s.label == "b"} == {1}


def test_each_class_has_its_share_whatever_its_size() -> None:
    contents = flat(100, "a") | flat(10, "b") | flat(3, "c")
    counts = Counter((s.label, s.split) for s in split(contents, val=0.2, test=0.1).samples)
    assert [counts["a", s] for s in ("train", "val", "test")] == [70, 20, 10]
    assert [counts["b", s] for s in ("train", "val", "test")] == [7, 2, 1]
    assert [counts["c", s] for s in ("train", "val", "test")] == [1, 1, 1]


def test_no_test_split_where_none_is_wanted() -> None:
    assert split(flat(), test=0.0).splits == ("train", "val")


def test_the_seed_decides() -> None:
    assert where(split(flat(), seed=1)) == where(split(flat(), seed=1))
    assert where(split(flat(), seed=1)) != where(split(flat(), seed=2))


def test_the_split_is_the_same_on_every_machine() -> None:
    """A value taken once: a change here gives every user another split."""
    manifest = split(flat(), seed=3)
    assert manifest.fingerprint[:32] == "9b46c71cac608fe16d4a99fa747ea128"
    of_a = [hashlib.sha256(f"a{i}".encode()).hexdigest() for i in range(40)]
    of_a.sort(key=lambda content: hashlib.sha256(f"3:{content}".encode()).digest())
    assert [where(manifest)[c] for c in of_a] == ["val"] * 6 + ["test"] * 6 + ["train"] * 28


def test_names_and_place_do_not_matter() -> None:
    contents = flat(30)
    renamed = {
        f"{path[0]}/deep/{len(contents) - i}.JPG": content
        for i, (path, content) in enumerate(contents.items())
    }
    assert where(split(contents)) == where(split(renamed, root="elsewhere"))
    assert split(contents).fingerprint == split(renamed, root="elsewhere").fingerprint


def test_one_more_file_moves_few_others() -> None:
    before = where(split(flat(200, "ab")))
    for number in range(10):
        after = where(split(flat(200, "ab") | {"a/new.png": f"new{number}"}))
        moved = [content for content in before if before[content] != after[content]]
        assert len(moved) <= 2


def test_real_folders_give_the_same_split(make_folder: Callable[..., Path]) -> None:
    one = make_folder("one", per_class=10)
    other = make_folder("another place", per_class=10)
    files = sorted(other.rglob("*.png"))
    for file in files[::-1]:  # other times, another order in the folder, other names
        content = file.read_bytes()
        file.unlink()
        (file.parent / f"x{999 - int(file.stem)}.PNG").write_bytes(content)
    manifests = [
        prepare_manifest(DataConfig(root=str(r)), RULES, lambda *_: None) for r in (one, other)
    ]
    assert where(manifests[0]) == where(manifests[1])
    assert manifests[0].fingerprint == manifests[1].fingerprint
    first = manifests[0].samples[0]
    assert first.sha256 == hashlib.sha256((one / first.path).read_bytes()).hexdigest()


def test_no_file_is_copied_or_moved(make_folder: Callable[..., Path]) -> None:
    root = make_folder(per_class=5)
    before = {f: f.stat().st_mtime_ns for f in root.rglob("*")}
    prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)
    assert {f: f.stat().st_mtime_ns for f in root.rglob("*")} == before


# Copies


def test_copies_in_one_class_stay_together() -> None:
    contents = {f"{c}/{i}-{k}.png": f"{c}{i}" for c in "ab" for i in range(20) for k in range(3)}
    manifest = split(contents)
    assert len(manifest.samples) == 120
    splits: dict[str, set[str]] = {}
    for sample in manifest.samples:
        splits.setdefault(sample.sha256, set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {name: len(manifest.split(name)) for name in manifest.splits} == {
        "train": 84,
        "val": 18,
        "test": 18,
    }


def test_copies_in_two_classes_stay_in_one_split() -> None:
    contents = flat(40, "ab") | {f"b/copy{i}.png": f"a{i}" for i in range(20)}
    for seed in range(5):
        manifest = split(contents, seed=seed)
        splits: dict[str, set[str]] = {}
        for sample in manifest.samples:
            splits.setdefault(sample.sha256, set()).add(sample.split)
        assert all(len(found) == 1 for found in splits.values())
        assert len(manifest.samples) == 100


def test_a_class_of_copies_only_is_refused() -> None:
    contents = flat(3, "a") | flat(9, "c") | {"b/copy.png": "a0"}
    seen = set()
    for seed in range(20):
        try:
            manifest = split(contents, seed=seed)
        except DataError as error:
            seen.add(error.message.split(" of one")[0])
        else:
            seen.add(" ".join(sorted({s.label for s in manifest.split("train")})))
    assert seen == {"root: every image of class b is a copy", "a b c"}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [("train", "val", "val"), ("train", "test", "test"), ("val", "test", "test")],
)
def test_copies_across_given_splits(first: str, second: str, kept: str) -> None:
    contents = given(train=3, val=3, test=3)
    contents |= {f"{first}/a/x.png": "same", f"{second}/b/y.png": "same"}
    manifest = split(contents)
    same = hashlib.sha256(b"same").hexdigest()
    assert [s.split for s in manifest.samples if s.sha256 == same] == [kept]
    paths = {first: f"{first}/a/x.png", second: f"{second}/b/y.png"}
    (left,) = manifest.left_out
    assert (left.path, left.reason) == (paths[first], f"the same bytes as {paths[kept]}")
    assert len(manifest.samples) == 19


def test_copies_within_a_given_split_are_kept() -> None:
    contents = given(train=3, val=3) | {"train/a/x.png": "same", "train/b/y.png": "same"}
    manifest = split(contents)
    assert manifest.left_out == ()
    assert len(manifest.split("train")) == 8


def test_a_train_class_that_is_all_in_val_is_refused() -> None:
    contents = given(train=3, val=3)
    contents |= {f"val/a/copy{i}.png": f"traina{i}" for i in range(3)}
    assert "every image of class a is a copy of one in another split" in refusal(contents)


# Given splits


def test_given_splits_are_kept() -> None:
    manifest = split(given(train=5, val=2, test=3))
    assert all(s.split == s.path.split("/")[0] for s in manifest.samples)
    assert {n: len(manifest.split(n)) for n in manifest.splits} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }


def test_no_test_split_is_made_where_val_is_given() -> None:
    assert split(given(train=5, val=2)).splits == ("train", "val")


def test_val_is_taken_from_train() -> None:
    manifest = split(given(train=20, test=5), val=0.25, test=0.5)
    counts = Counter((s.split, s.label) for s in manifest.samples)
    assert counts == {
        (part, c): n for part, n in (("train", 15), ("val", 5), ("test", 5)) for c in "ab"
    }
    assert all(s.path.startswith("test/") for s in manifest.split("test"))
    assert all(s.path.startswith("train/") for s in manifest.split("val"))


def test_val_may_lack_classes_and_is_matched_by_name() -> None:
    contents = {f"train/{c}/{i}.png": f"{c}{i}" for c in "abc" for i in range(3)}
    manifest = split(contents | {"val/c/1.png": "v1", "val/b/1.png": "v2"})
    assert manifest.labels == ("a", "b", "c")
    labels = {s.label: manifest.labels.index(s.label) for s in manifest.split("val")}
    assert labels == {"b": 1, "c": 2}


@pytest.mark.parametrize("part", ["val", "test"])
def test_unknown_classes_are_refused(part: str) -> None:
    contents = given(train=3, val=2) | {f"{part}/zebra/1.png": "z"}
    expected = f"root: the {part} split has classes that train has not: zebra"
    assert refusal(contents) == expected
    # A file that cannot be decoded is no reason to be silent.
    assert refusal(given(train=3, val=2) | {f"{part}/zebra/1.png": "bad"}) == expected


# Refused


def test_too_small_a_class() -> None:
    message = refusal(flat(10, "a") | flat(2, "b"))
    assert message.startswith("class b has 2 different images, too few to split into train, val")
    copies = flat(10, "a") | {f"b/{i}.png": "one" for i in range(9)}
    assert "class b has 1 different images" in refusal(copies)
    assert "class a has 10 different images" in refusal(flat(10), val=0.5, test=0.5)


def test_one_class_and_none() -> None:
    assert refusal(flat(9, "a")) == "root: found one class (a), expected at least two"
    assert "found no images" in refusal({}, empty=((None, "a"), (None, "b")))
    assert "found no images in a train split" in refusal(given(val=3))


def test_an_empty_class() -> None:
    assert refusal(flat(), empty=((None, "z"),)) == "root: no usable image in class z"
    assert "in class z" in refusal(given(train=3, val=1), empty=(("train", "z"),))
    assert split(given(train=3, val=1), empty=(("val", "a"),)).labels == ("a", "b")


def test_a_class_without_one_good_image() -> None:
    assert "no usable image in class z" in refusal(flat() | {"z/1.png": "bad", "z/2.png": "bad2"})


def test_bad_images_are_left_out_with_the_reason() -> None:
    manifest = split(flat() | {"a/bad.png": "bad", "b/bad.png": "bad2"})
    assert [(e.path, e.reason) for e in manifest.left_out] == [
        ("a/bad.png", "damaged"),
        ("b/bad.png", "damaged"),
    ]
    assert len(manifest.samples) == 120
    assert where(manifest) == where(split(flat()))


def test_prepare_fails_with_the_list_or_skips(make_folder: Callable[..., Path]) -> None:
    root = make_folder(per_class=5)
    for number in range(12):
        (root / "red" / f"bad{number:02d}.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)
    message = caught.value.message
    assert "12 of 27 files cannot be decoded" in message
    for number in range(12):
        assert f"red/bad{number:02d}.jpg: the file is empty" in message
    skip = DataConfig(root=str(root), on_bad_image="skip")
    manifest = prepare_manifest(skip, RULES, lambda *_: None)
    assert [e.path for e in manifest.left_out] == [f"red/bad{n:02d}.jpg" for n in range(12)]
    assert len(manifest.samples) == 15


# split.json


def test_round_trip(tmp_path: Path) -> None:
    manifest = split(flat(5) | {"a/bad.png": "bad", "花/ü 1.png": "u1"} | flat(4, "花"))
    save_manifest(manifest, tmp_path / "split.json")
    assert load_manifest(tmp_path / "split.json") == manifest
    content = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))
    assert content["fingerprint"] == manifest.fingerprint
    assert content["counts"] == {n: len(manifest.split(n)) for n in ("train", "val", "test")}
    assert content["samples"][0].keys() == {"path", "class_name", "split", "sha256"}


def damaged(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    path = tmp_path / "split.json"
    save_manifest(split(flat(5)), path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_manifest(path)
    return caught.value.message


def test_damaged_split_files(tmp_path: Path) -> None:
    assert "format 2, expected 1" in damaged(tmp_path, lambda c: c.update(format=2))
    for key in ("root", "class_names", "samples", "left_out", "format", "fingerprint"):
        assert "damaged split file" in damaged(tmp_path, lambda c, key=key: c.pop(key))
    entries = "damaged split file: its entries are not those that mnft writes"
    assert entries in damaged(tmp_path, lambda c: c.update(samples=3))
    assert entries in damaged(tmp_path, lambda c: c["samples"][0].pop("sha256"))
    assert entries in damaged(tmp_path, lambda c: c["samples"][0].update(more=1))
    assert "its fingerprint is not that of its samples" in damaged(
        tmp_path, lambda c: c["samples"].pop()
    )
    assert "split file: `samples` is missing" in damaged(tmp_path, lambda c: c.pop("samples"))
    path = tmp_path / "split.json"
    for content, reason in ((b'{"format": 1,\n', "not valid JSON in line 2"), (b"\xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"damaged split file: .*{reason}") as caught:
            load_manifest(path)
        assert "--data DIR" in str(caught.value.hint)
    assert "fingerprint" in damaged(tmp_path, lambda c: c["samples"][0].update(split="val2"))
    for change in ("reverse", "clear"):
        assert "class_names" in damaged(
            tmp_path, lambda c, how=change: getattr(c["class_names"], how)()
        )
    assert "class_names" in damaged(tmp_path, lambda c: c["class_names"].append("more"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}'])
def test_split_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged split file"):
        load_manifest(tmp_path / "split.json")


def test_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_manifest(tmp_path / "split.json")


def test_the_fingerprint_is_of_contents_classes_and_splits() -> None:
    samples = (Sample("a/1", "a", "train", "00"), Sample("b/1", "b", "val", "11"))
    first = Manifest(Path("x"), ("a", "b"), samples).fingerprint
    moved = (Sample("b/9", "b", "val", "11"), Sample("a/8", "a", "train", "00"))
    assert Manifest(Path("y"), ("a", "b"), moved).fingerprint == first
    for other in (
        Sample("b/1", "b", "test", "11"),
        Sample("b/1", "a", "val", "11"),
        Sample("b/1", "b", "val", "12"),
    ):
        changed = Manifest(Path("x"), ("a", "b"), (samples[0], other))
        assert changed.fingerprint != first


def test_find_changes(make_folder: Callable[..., Path]) -> None:
    root = make_folder(per_class=4)
    manifest = prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)
    assert list_changes(manifest, manifest.samples) == []
    (root / "red/000.png").write_bytes(b"other")
    (root / "blue/001.png").unlink()
    assert list_changes(manifest, manifest.samples) == [
        "blue/001.png: No such file or directory",
        "red/000.png: its content has changed",
    ]
    assert list_changes(manifest, manifest.samples[4:5]) == []


# Images to judge a model on


def select(root: Path, part: str | None = None, recorded: Manifest | None = None) -> Any:
    config, names = DataConfig(root=str(root)), ("blue", "green", "red")
    found = list_images(config, RULES, part, names, recorded, lambda *_: None)
    return found.samples, found.problems


def test_select_matches_by_name(make_folder: Callable[..., Path]) -> None:
    root = make_folder(per_class=3)
    (root / "green").rename(root.parent / "away")
    samples, problems = select(root)
    assert {s.label for s in samples} == {"blue", "red"}
    assert ({s.split for s in samples}, problems) == ({"all"}, {})
    (root / "blue").rename(root / "azure")
    with pytest.raises(DataError, match="classes that the model does not know: azure"):
        select(root)


@pytest.mark.parametrize(
    ("splits", "part", "chosen"),
    [
        (("train", "val", "test"), None, "test"),
        (("train", "val"), None, "val"),
        (("train", "valid", "test"), "val", "val"),
        (("train", "val"), "train", "train"),
    ],
)
def test_select_takes_a_split(
    make_folder: Callable[..., Path], splits: tuple[str, ...], part: str | None, chosen: str
) -> None:
    samples, _ = select(make_folder(splits=splits, per_class=2), part)
    assert {s.split for s in samples} == {chosen}
    assert len(samples) == 6


def test_select_refuses_a_split_that_is_not_there(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no images in the test split: it has train, val"):
        select(make_folder(splits=("train", "val"), per_class=2), "test")
    with pytest.raises(DataError, match="does not lie in a run"):
        select(make_folder("flat", per_class=2), "test")


def test_select_finds_a_recorded_split_by_content(make_folder: Callable[..., Path]) -> None:
    root = make_folder(per_class=6)
    recorded = prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)
    moved = root.parent / "moved"
    root.rename(moved)
    samples, _ = select(moved, "val", recorded)
    assert {s.sha256 for s in samples} == {s.sha256 for s in recorded.split("val")}
    assert {s.split for s in samples} == {"val"}


def test_select_lists_what_it_cannot_decode(make_folder: Callable[..., Path]) -> None:
    root = make_folder(per_class=2)
    (root / "red/bad.jpg").write_bytes(b"")
    samples, problems = select(root)
    assert len(samples) == 6
    assert problems == {"red/bad.jpg": "the file is empty"}


def test_scan_to_manifest(make_folder: Callable[..., Path]) -> None:
    """Classes of a folder with splits come in the order of their names."""
    scan = class_folders.read(make_folder(splits=("train", "val"), per_class=2))
    assert RULES.list_names(scan) == ["blue", "green", "red"]


def test_a_relative_root_is_found_from_another_folder(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder("images")
    monkeypatch.chdir(tmp_path)
    manifest = prepare_manifest(DataConfig(root="images"), RULES, lambda *_: None)
    save_manifest(manifest, tmp_path / "split.json")
    assert load_manifest(tmp_path / "split.json").root == Path("images")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_manifest(tmp_path / "split.json").root == tmp_path / "images"


def test_a_val_folder_without_images_is_refused(make_folder: Callable[..., Path]) -> None:
    root = make_folder(splits=("train",))
    for name in ("red", "green"):
        (root / "val" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="the val folder holds no images"):
        prepare_manifest(DataConfig(root=str(root)), RULES, lambda *_: None)


# --- the split of another run


def known_of(manifest: Manifest) -> dict[str, str]:
    return {sample.sha256: sample.split for sample in manifest.samples}


def test_what_another_run_knows_stays_in_its_split() -> None:
    first = split(flat(40), seed=1)
    again = split(flat(40), seed=2, known=known_of(first))
    assert known_of(again) == known_of(first)
    assert known_of(split(flat(40), seed=2)) != known_of(first)
    # Without a share for test too: it must not become training images.
    assert known_of(split(flat(40), seed=2, test=0.0, known=known_of(first))) == known_of(first)


def test_new_images_are_split_as_usual() -> None:
    first = split(flat(40))
    more = split(flat(80), known=known_of(first))
    assert known_of(first).items() <= known_of(more).items()
    for name, images in {"train": 56, "val": 12, "test": 12}.items():
        assert len(more.split(name)) == 3 * images
    # A few go to train; a new class gets its share of every split.
    few = split(flat(42) | flat(10, "d"), known=known_of(first))
    assert {s.split for s in few.samples if s.path[:5] in {"a/040", "a/041"}} == {"train"}
    assert Counter(s.split for s in few.samples if s.label == "d") == {
        "train": 6,
        "val": 2,
        "test": 2,
    }


def test_a_test_folder_of_its_own_comes_before_another_run_s_test_split() -> None:
    files = given(train=20, test=4)
    first = {digest(f"train{c}{i}"): ("test", "val")[i % 2] for c in "ab" for i in range(4)}
    manifest = split(files, known=first)
    splits = {sample.path: sample.split for sample in manifest.samples}
    assert {splits[f"train/a/{i}.png"] for i in (0, 2)} == {"train"}
    assert {splits[f"train/a/{i}.png"] for i in (1, 3)} == {"val"}
    assert {s.split for s in manifest.samples if s.path.startswith("test/")} == {"test"}


@pytest.mark.parametrize(
    ("run", "splits", "message"),
    [
        ("nowhere", (), "no such file"),
        ("runs/other", (), "has seen none of the images"),
        ("runs/junk", (), "damaged split file"),
        ("runs/own", ("train", "val"), "which decide the split already"),
    ],
)
def test_a_run_that_has_no_split_for_this_folder(
    make_folder, tmp_path: Path, monkeypatch, run: str, splits: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_folder(splits=splits)
    config = DataConfig(root=str(root), split_from=run)
    own = prepare_manifest(DataConfig(root=str(root)), RULES, lambda _done, _total: None)
    save_manifest(own, tmp_path / "runs/own/split.json")
    save_manifest(split(flat(5)), tmp_path / "runs/other/split.json")
    files.write_text(tmp_path / "runs/junk/split.json", "{}")
    with pytest.raises(ConfigError, match=message) as caught:
        prepare_manifest(config, RULES, lambda _done, _total: None)
    assert caught.value.key == "data.split_from"


@pytest.mark.parametrize("run", ["runs/own", "runs/own/best", "runs/own/split.json"])
def test_a_run_is_found_as_it_is_named_elsewhere(
    make_folder, tmp_path: Path, monkeypatch, run: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"root": str(make_folder(per_class=20))}
    own = prepare_manifest(DataConfig(**data, split_seed=3), RULES, lambda _done, _total: None)
    (tmp_path / "runs/own/best").mkdir(parents=True)
    save_manifest(own, tmp_path / "runs/own/split.json")
    assert (
        prepare_manifest(DataConfig(**data, split_from=run), RULES, lambda _done, _total: None)
        == own
    )


def test_inherited_images_come_back(tmp_path: Path) -> None:
    manifest = replace(split(flat(5)), inherited=frozenset({"0" * 16, "f" * 16}))
    save_manifest(manifest, tmp_path / "split.json")
    loaded = load_manifest(tmp_path / "split.json")
    assert loaded == manifest
    assert loaded.trained_on > loaded.inherited
    content = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps(content | {"inherited": "xy"}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_manifest(tmp_path / "split.json")
