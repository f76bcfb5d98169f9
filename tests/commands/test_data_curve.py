"""`mnft data curve`: what a user sees, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from mnft.commands.curve import describe
from mnft.tasks.outputs import Rate
from mnft.training.head.law import Forecast


@pytest.fixture
def config(run_cli, make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a LeNet that has learned from other images of the same colours."""
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "photos.yaml"
    sections = {
        "data": {"root": str(make_folder(splits=("train", "val"), per_class=20)), "workers": 0},
        "model": {"name": "lenet5", "pretrained": False},
        "train": {"epochs": 1, "precision": "fp32", "device": "cpu"},
    }
    path.write_text(yaml.safe_dump(sections))
    assert run_cli("train", path, "--set", "run.name=start").exit_code == 0
    sections["model"] = {"name": f"local-dir:{tmp_path / 'runs' / 'start' / 'best'}"}
    path.write_text(yaml.safe_dump(sections))
    return path


def test_the_curve_is_shown_and_written(config: Path, run_cli) -> None:
    result = run_cli("data", "curve", config)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["images", "a", "class", "accuracy", "sd", "draws"]
    assert [row[0] for row in rows[1:]] == ["15", "30", "60", "120"]
    assert [row[1] for row in rows[1:]] == ["5", "10", "20", "40"]
    assert rows[-1][-1] == "expected"
    assert "Twice as many images: accuracy" in result.stderr
    assert "not of fine-tuning" in result.stderr

    runs = config.parent / "runs"
    record = json.loads((runs / "photos-curve.json").read_text())
    assert [point["images"] for point in record["points"]] == [15, 30, 60]
    expected = record["expected"]
    assert expected["images"] == 120
    assert expected["figure"]["low"] <= expected["figure"]["value"] <= expected["figure"]["high"]
    with (runs / "photos-curve.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 5 + 5 + 1
    mean = sum(float(row["accuracy"]) for row in table if row["images"] == "15") / 5
    assert mean == pytest.approx(record["points"][0]["mean"])
    assert (runs / "photos-curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (runs / "photos").exists()

    # Again from the cache: the same to the last digit, and no feature is computed.
    again = run_cli("data", "curve", config, "--json")
    assert again.exit_code == 0, again.stderr
    found = json.loads(again.stdout)
    assert found.pop("files")[0].endswith("photos-curve.png")
    assert found == record


def test_a_training_takes_the_features_of_the_curve(
    config: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("data", "curve", config).exit_code == 0
    monkeypatch.setattr("mnft.training.stages.compute_features", None)
    result = run_cli("train", config, "--set", "train.stages=[head]")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("sets", "code", "messages"),
    [
        (["model.pretrained=false", "model.name=lenet5"], 2, ["model.pretrained", "random"]),
        (["data.root=few"], 1, ["18 training images of 3 classes", "expected 20 for each class"]),
        (["data.root=nowhere"], 1, ["nowhere", "no such folder"]),
    ],
)
def test_what_gives_no_curve_is_refused(
    config: Path, run_cli, make_folder, sets: list[str], code: int, messages: list[str]
) -> None:
    make_folder("few", splits=("train", "val"), per_class=6)
    options = [word for value in sets for word in ("--set", value)]
    result = run_cli("data", "curve", config, *options)
    assert result.exit_code == code, result.stderr
    assert all(message in result.stderr for message in messages), result.stderr
    assert not list((config.parent / "runs").glob("*-curve*"))


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.03, 0.01, 0.05), "+3.0 points (+1.0 to +5.0): more images help"),
        ((0.004, -0.002, 0.008), "more of the same images help little"),
        ((0.02, -0.01, 0.05), "more images probably help, but nothing is within the band, too"),
        ((0.008, -0.01, 0.03), "more images may help a little, but nothing is within the band"),
    ],
)
def test_the_words_follow_the_band(gain: tuple[float, float, float], words: str) -> None:
    expected = Forecast(3200, Rate(0.924, 0.916, 0.931), Rate(*gain), 0.05, 1.0, 0.4)
    text = describe(expected, "accuracy")
    assert text.startswith("Twice as many images: accuracy 92.4% expected (91.6 to 93.1), ")
    assert words in text
