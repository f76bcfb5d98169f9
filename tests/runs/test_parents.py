"""Test images that a start model or a teacher was trained on: recorded, named, and avoided."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.images import MakeFolder
from typer.testing import Result

from mnft.data.lineage import pack, shorten, unpack
from mnft.data.manifest import Manifest, load_manifest

Cli = Callable[..., Result]
FIRST = Path("runs/first")


class Runs:
    """Trains tiny models on one folder of images."""

    def __init__(self, run_cli: Cli, root: Path) -> None:
        self.cli = run_cli
        sections = {
            "recipe": "plain",
            "data": {"root": str(root), "workers": 0, "img_size": 32},
            "model": {"name": "lenet5", "pretrained": False},
            "train": {"epochs": 1, "batch_size": 16, "precision": "fp32", "device": "cpu"},
            "run": {"tensorboard": False},
        }
        Path("photos.yaml").write_text(yaml.safe_dump(sections))

    def train(self, name: str, *sets: str, teacher: str | None = None) -> Result:
        options = [part for value in (f"run.name={name}", *sets) for part in ("--set", value)]
        taught = ["--teacher", teacher] if teacher else []
        result = self.cli("distill" if teacher else "train", "photos.yaml", *taught, *options)
        assert result.exit_code == 0, result.stderr
        return result

    def start_from(self, folder: str | Path, name: str, *sets: str) -> Result:
        return self.train(name, f"model.name=local-dir:{folder}", "model.pretrained=true", *sets)


@pytest.fixture
def runs(run_cli: Cli, make_folder: MakeFolder) -> Runs:
    """With a run `first`, whose split is that of seed 0."""
    runs = Runs(run_cli, make_folder(per_class=12))
    runs.train("first")
    return runs


def split_of(name: str) -> Manifest:
    return load_manifest(Path("runs") / name / "split.json")


def trained(name: str) -> frozenset[str]:
    return frozenset(shorten(sample.sha256) for sample in split_of(name).split("train"))


def overlap(name: str, split: str, seen: frozenset[str]) -> int:
    return sum(shorten(sample.sha256) in seen for sample in split_of(name).split(split))


def recorded(folder: Path) -> frozenset[str]:
    return unpack(json.loads((folder / "mnft.json").read_text())["trained_on"])


@pytest.mark.parametrize("role", ["start", "file", "teacher"])
def test_images_that_a_parent_was_trained_on_are_named(runs: Runs, role: str) -> None:
    seed = "data.split_seed=7"
    if role == "start":
        result = runs.start_from("runs/first/best", "second", seed)
    elif role == "file":
        result = runs.train("second", seed, "model.pretrained=runs/first/best/model.safetensors")
    else:
        result = runs.train("second", seed, teacher="runs/first")
    test, val = (overlap("second", split, trained("first")) for split in ("test", "val"))
    assert test > 0
    assert val > 0
    warning = f"{test} of the 6 test images and {val} of the 6 val images were trained on by "
    what = "the teacher" if role == "teacher" else "the start model"
    assert f"{warning}runs/first/best ({what})" in result.stderr
    assert "--set data.split_from=runs/first takes over the split" in result.stderr
    judged = runs.cli("eval", "--ckpt", "runs/second", "--device", "cpu")
    said = f"{test} of the 6 images were trained on by models that it was made from"
    assert said in judged.stderr
    figures = json.loads(Path("runs/second/eval/metrics.json").read_text())
    assert figures["images_trained_on"] == test
    compared = runs.cli("compare", "runs/second", "--rounds", 1)
    assert f"second torch: {said}" in compared.stderr


def test_a_model_folder_says_what_it_was_trained_on_wherever_it_is(runs: Runs) -> None:
    """Through two generations, from a copy that lies in no run."""
    assert recorded(FIRST / "best") == recorded(FIRST / "last") == trained("first")
    runs.start_from("runs/first/best", "second", "data.split_seed=7")
    first = trained("first")
    everything = first | trained("second")
    assert recorded(Path("runs/second/best")) == everything
    assert split_of("second").inherited == everything - trained("second")
    shutil.copytree("runs/second/best", "copy")
    shutil.rmtree("runs/second")
    shutil.rmtree(FIRST)
    result = runs.start_from("copy", "third", "data.split_seed=3")
    seen = overlap("third", "test", everything)
    # Some were in the test split of the copy's run, and are known through its parent alone.
    assert seen > overlap("third", "test", everything - first)
    assert f"{seen} of the 6 test images" in result.stderr
    assert "data.split_from" not in result.stderr  # the run is not there
    assert recorded(Path("runs/third/best")) == everything | trained("third")


def test_a_run_of_before_the_record_is_known_by_its_split(runs: Runs) -> None:
    record = json.loads((FIRST / "best/mnft.json").read_text())
    del record["trained_on"]
    (FIRST / "best/mnft.json").write_text(json.dumps(record))
    split = json.loads((FIRST / "split.json").read_text())
    del split["inherited"]
    (FIRST / "split.json").write_text(json.dumps(split))
    assert runs.cli("eval", "--ckpt", FIRST).exit_code == 0
    shutil.copytree(FIRST / "best", "copy")
    result = runs.start_from("runs/first/best", "second", "data.split_seed=7")
    assert "test images" in result.stderr
    assert split_of("second").inherited == trained("first") - trained("second")
    # Outside its run nobody knows: as before.
    result = runs.start_from("copy", "third", "data.split_seed=7")
    assert "test images" not in result.stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"trained_on": 3}', '{"trained_on": "xyz"}'])
def test_a_damaged_record_of_a_parent_is_said(runs: Runs, content: str) -> None:
    shutil.copytree(FIRST / "best", "copy")
    Path("copy/mnft.json").write_text(content)
    result = runs.start_from("copy", "second")
    assert ("which images copy was trained on is not known" in result.stderr) == (content != "[]")
    assert split_of("second").inherited == frozenset()


def test_random_weights_inherit_nothing(runs: Runs) -> None:
    result = runs.train("second", "model.name=local-dir:runs/first/best", "data.split_seed=7")
    assert "trained on by" not in result.stderr
    assert recorded(Path("runs/second/best")) == trained("second")


def test_the_split_of_a_run_is_taken_over(runs: Runs) -> None:
    sets = ("data.split_seed=7", "data.split_from=runs/first")
    result = runs.start_from("runs/first/best", "second", *sets)
    assert "trained on by" not in result.stderr
    assert "; split of runs/first" in result.stderr
    assert split_of("second").fingerprint == split_of("first").fingerprint
    # The saved config trains the same run again.
    again = runs.cli("train", "runs/second/config.yaml", "--set", "run.name=again")
    assert again.exit_code == 0, again.stderr
    assert split_of("again") == split_of("second")


def test_a_resumed_run_still_knows(runs: Runs) -> None:
    runs.start_from("runs/first/best", "second", "data.split_seed=7")
    inherited = split_of("second").inherited
    (FIRST / "best/mnft.json").unlink()  # what comes later does not matter
    (FIRST / "split.json").unlink()
    result = runs.cli("train", "--resume", "runs/second", "--set", "train.epochs=2")
    assert result.exit_code == 0, result.stderr
    assert "test images" in result.stderr
    assert recorded(Path("runs/second/last")) == inherited | trained("second")


# --- the form of the record


def test_the_record_is_short_and_comes_back() -> None:
    contents = {shorten(f"{number:064x}"[::-1]) for number in range(1000)}
    assert len(contents) == 1000
    assert unpack(pack(contents)) == contents
    assert len(pack(contents)) == 17 * 1000 - 1
    assert unpack(pack([])) == frozenset()


@pytest.mark.parametrize("text", [None, 3, ["0" * 16], "0" * 15, "0" * 32, "G" * 16])
def test_other_texts_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="found"):
        unpack(text)
