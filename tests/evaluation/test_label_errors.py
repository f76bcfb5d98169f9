"""Likely wrong labels of a folder, by the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import draw
from typer.testing import Result

Cli = Callable[..., Result]


@pytest.fixture
def run_folder(run_cli: Cli, tmp_path: Path) -> Path:
    """A run on two classes that are easy to tell apart: bright and dark."""
    for label, shift in (("bright", 120), ("dark", 0)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(24):
            image = draw(index + shift, (48, 48)).point(lambda v, s=shift: v // 3 + s)
            image.save(tmp_path / "images" / label / f"{index:02d}.png")
    (tmp_path / "my.yaml").write_text(
        "data: {root: images, img_size: 32, val_fraction: 0.3, test_fraction: 0.2}\n"
        "model: {name: lenet5, pretrained: false}\n"
        "optim: {lr: 0.01}\ntrain: {epochs: 8, batch_size: 8, precision: fp32}\nrun: {name: one}\n"
    )
    result = run_cli("train", "my.yaml")
    assert result.exit_code == 0, result.stderr
    return tmp_path / "runs/one"


def test_the_command_tells_who_judged_and_fails_for_nothing(
    run_cli: Cli, run_folder: Path, tmp_path: Path
) -> None:
    result = run_cli("data", "check", "images", "--ckpt", run_folder, "--json")
    assert result.exit_code == 0, result.stderr
    split = json.loads((run_folder / "split.json").read_text())
    labels = json.loads(result.stdout)["labels"]
    assert labels["crosswise"] == split["counts"]["train"]
    assert labels["by_model"] == split["counts"]["val"] + split["counts"]["test"]
    wrong = "images/dark/wrong.png"
    draw(999, (48, 48)).point(lambda v: v // 3 + 125).save(tmp_path / wrong)
    result = run_cli("data", "check", "images", "--ckpt", run_folder, "--fix", "out.txt")
    assert result.exit_code == 0, result.stderr
    assert "label: dark/wrong.png: labelled dark, looks like bright" in result.stderr
    text = (tmp_path / "out.txt").read_text()
    assert "# look: dark/wrong.png" in text
    assert "\ndark/wrong.png" not in text


def test_a_model_folder_without_its_run_counts_what_it_records_or_all_as_learned(
    run_cli: Cli, run_folder: Path, tmp_path: Path
) -> None:
    (run_folder / "best").rename(tmp_path / "alone")
    result = run_cli("data", "check", "images", "--ckpt", "alone", "--json")
    count = json.loads((run_folder / "split.json").read_text())["counts"]["train"]
    assert json.loads(result.stdout)["labels"]["crosswise"] == count
    record = json.loads((tmp_path / "alone/mnft.json").read_text())
    del record["trained_on"]
    (tmp_path / "alone/mnft.json").write_text(json.dumps(record))
    result = run_cli("data", "check", "images", "--ckpt", "alone", "--json")
    assert json.loads(result.stdout)["labels"]["by_model"] == 0
    assert json.loads(result.stdout)["labels"]["crosswise"] == 48
    (tmp_path / "images/dark").rename(tmp_path / "images/night")
    result = run_cli("data", "check", "images", "--ckpt", "alone", "--json")
    assert json.loads(result.stdout)["labels"]["unknown_class"] == 24
    (tmp_path / "images/bright").rename(tmp_path / "images/day")
    result = run_cli("data", "check", "images", "--ckpt", "alone")
    assert result.exit_code == 1
    assert "none of its classes" in result.stderr
