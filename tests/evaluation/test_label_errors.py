"""Likely wrong labels: the confident joint, probabilities out of sample, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.images import draw
from typer.testing import Result

from mnft.evaluation.confident_learning import cross_validate, find_label_errors

Cli = Callable[..., Result]


def test_the_off_diagonal_of_the_confident_joint() -> None:
    """Thresholds 0.7, 0.6 and 0.69; worked out by hand."""
    probabilities = np.array(
        [
            [0.9, 0.05, 0.05],
            [0.5, 0.45, 0.05],  # unsure, but nothing else is confident
            [0.3, 0.6, 0.1],  # labelled 1, and so
            [0.3, 0.6, 0.1],
            [0.75, 0.1, 0.15],  # labelled 2, confidently 0
            [0.0, 0.02, 0.98],
            [0.0, 0.02, 0.98],
            [0.0, 0.0, 1.0],
            [0.6, 0.05, 0.35],  # labelled 2, rather 0, but less than images of 0 are
        ]
    )
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2, 2])
    thresholds = [probabilities[labels == k, k].mean() for k in range(3)]
    assert np.allclose(thresholds, [0.7, 0.6, 0.692])
    (found,) = find_label_errors(probabilities, labels)
    assert (found.position, found.suggested) == (4, 0)
    assert found.margin == pytest.approx(0.6)


def test_the_most_certain_comes_first_and_nothing_of_nothing() -> None:
    probabilities = np.array([[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5 + [[0.05, 0.95], [0.01, 0.99]])
    labels = np.array([0] * 5 + [1] * 5 + [0, 0])
    assert [error.position for error in find_label_errors(probabilities, labels)] == [11, 10]
    assert find_label_errors(np.empty((0, 3)), np.empty(0, dtype=np.int64)) == []


def features(count: int = 300, classes: int = 4) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, 16)) * 2.5
    return centres[labels] + rng.normal(size=(count, 16)), labels


def test_flipped_labels_are_found() -> None:
    values, labels = features()
    assert len(find_label_errors(cross_validate(values, labels, range(300), 0), labels)) <= 3
    wrong = np.random.default_rng(1).permutation(300)[:15]
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % 4
    found = find_label_errors(cross_validate(values, given, range(300), 0), given)
    hits = [e for e in found if e.position in set(wrong.tolist())]
    assert len(hits) >= 8
    assert len(hits) >= 0.8 * len(found)
    assert all(e.suggested == labels[e.position] for e in hits)


def test_an_image_is_judged_without_itself_and_its_copies() -> None:
    """Labels drawn by chance can be learned by heart, but not predicted."""
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(60, 200)), rng.integers(0, 2, 60)
    by_itself = cross_validate(values, labels, range(60), 0)
    assert 0.25 < (by_itself.argmax(1) == labels).mean() < 0.75
    twice, both = np.concatenate([values, values]), np.concatenate([labels, labels])
    apart = cross_validate(twice, both, [*range(60), *range(60)], 0)
    assert 0.25 < (apart.argmax(1) == both).mean() < 0.75
    assert np.allclose(by_itself.sum(1), 1)


def test_tiny_and_lopsided_data() -> None:
    """Nothing can be said of them, so nothing is."""
    for labels in ([0, 0, 2], [0, 1], [1, 1, 1], [], [0, 0, 0, 0, 1]):
        given = np.array(labels, dtype=np.int64)
        values = np.eye(max(1, len(labels)))[: len(labels)]
        found = cross_validate(values, given, range(len(labels)), 0)
        assert len(found) == len(labels)
        assert find_label_errors(found, given) == []


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
