"""`mnft eval --robustness`: its table, files, JSON and advice, also for other tasks and files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import build
from typer.testing import Result

from mnft.data.corruptions import CORRUPTIONS
from mnft.evaluation.robustness.files import ROBUSTNESS_FILES
from mnft.model.bundle import ModelCard, save_bundle
from mnft.preprocessing import Preprocessing

Cli = Callable[..., Result]
NAMES = [corruption.name for corruption in CORRUPTIONS]


def save_model(folder: Path, task: str = "classify") -> Path:
    """A LeNet-5 whose answers depend on much of the image."""
    import timm

    torch.manual_seed(2)
    model = timm.create_model("lenet5", num_classes=3)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing((3, 32, 32), half, half, "bilinear", 1.0)
    settings = {"thresholds": dict.fromkeys(("a", "b", "c"), 0.5)} if task != "classify" else {}
    card = ModelCard(
        "lenet5",
        {},
        preprocessing,
        ("a", "b", "c"),
        model.pretrained_cfg,
        task=task,
    )
    save_bundle(folder, model.state_dict(), card, {"settings": settings} if settings else {})
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return build(tmp_path / "pictures", {"a": 5, "b": 5, "c": 5}, (80, 60))


@pytest.fixture
def judged(tmp_path: Path, run_cli: Cli) -> Callable[..., Result]:
    """Run `mnft eval MODEL --robustness`; the answer of a wrong run is an error."""

    def run(model: Path, data: Path, *options: object) -> Result:
        where = ("--data", data, "--device", "cpu", "--workers", 0)
        result = run_cli("eval", model, *where, "--robustness", *options)
        assert result.exit_code == 0, result.stderr
        return result

    return run


def relabel(pictures: Path, run_cli: Cli, model: Path) -> Path:
    """Put pictures where the model says that they belong, so that it is right when clean."""
    result = run_cli("predict", "--ckpt", model, pictures, "--workers", 0)
    rows = list(csv.DictReader(result.stdout.splitlines()))
    for number, row in enumerate(rows):
        target = pictures.parent / "right" / row["class_1"] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(row["path"]).save(target)
    return pictures.parent / "right"


@pytest.mark.plots
def test_table_files_and_json_say_the_same(
    tmp_path: Path, pictures: Path, judged: Cli, run_cli: Cli
) -> None:
    model = save_model(tmp_path / "model")
    data = relabel(pictures, run_cli, model)
    shown = judged(model, data, "-o", tmp_path / "out")
    found = json.loads(judged(model, data, "-o", tmp_path / "out", "--json").stdout)["robustness"]
    assert found == json.loads((tmp_path / "out/robustness.json").read_text())
    assert found["figure"] == "accuracy"
    assert found["num_images"] == 15
    assert found["clean"]["value"] == 1.0
    assert [entry["name"] for entry in found["corruptions"]] == NAMES
    values = [level["value"] for entry in found["corruptions"] for level in entry["levels"]]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert 0.2 < found["mean"] < 0.99
    assert found["drop"] == pytest.approx(1 - found["mean"])
    assert found["drop_interval"]["low"] < found["drop"] < found["drop_interval"]["high"]

    with (tmp_path / "out/robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["corruption"] == "clean"
    assert [float(row["accuracy"]) for row in rows[1:]] == pytest.approx(values)
    assert {row["images"] for row in rows} == {"15"}
    assert all(float(r["low"]) <= float(r["accuracy"]) <= float(r["high"]) for r in rows)

    by_mean = sorted(found["corruptions"], key=lambda entry: entry["mean"])
    lines = shown.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("corruption ")) + 1
    assert [lines[first + i].split("  ")[0] for i in range(14)] == [e["name"] for e in by_mean]
    assert f"{by_mean[0]['mean']:.1%}" in lines[first]
    assert f"worst      {by_mean[0]['name']} {by_mean[0]['mean']:.1%}, {by_mean[1]['name']}" in (
        shown.stdout
    )
    assert found["worst"] == [entry["name"] for entry in by_mean[:3]]
    assert "points below clean images  (95% interval of the difference" in shown.stdout
    assert "train against it: mnft train CONFIG --set augment.device=0.5" in shown.stderr
    assert found["advice"] in shown.stderr

    for name in ROBUSTNESS_FILES:
        assert (tmp_path / "out" / name).is_file(), name
    for name in ("robustness.png", "robustness_worst.png"):
        pixels = np.asarray(Image.open(tmp_path / "out" / name))
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 10


def test_the_same_figures_again_for_other_batches_and_with_flips(
    tmp_path: Path, pictures: Path, judged: Cli
) -> None:
    model = save_model(tmp_path / "model")
    runs = [
        json.loads(judged(model, pictures, "--json", *options).stdout)["robustness"]
        for options in ((), ("--batch-size", 4), ("--flip", "-o", tmp_path / "flipped"))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]  # clean and corrupted images are both averaged
    assert len(runs[2]["corruptions"]) == len(NAMES)


def test_a_later_evaluation_replaces_the_files(
    tmp_path: Path, pictures: Path, judged: Cli, run_cli: Cli
) -> None:
    model, out = save_model(tmp_path / "model"), tmp_path / "out"
    judged(model, pictures, "-o", out)
    again = run_cli("eval", model, "--data", pictures, "-o", out, "--workers", 0)
    assert again.exit_code == 0, again.stderr
    assert not (out / "robustness.csv").exists()
    assert "robustness" not in again.stdout
    (out / "robustness.csv").mkdir()
    (out / "mine.txt").write_text("work")
    refused = run_cli("eval", model, "--data", pictures, "-o", out, "--robustness")
    assert refused.exit_code == 2
    assert "is not an earlier evaluation" in refused.stderr


def test_an_exported_file(tmp_path: Path, pictures: Path, judged: Cli, run_cli: Cli) -> None:
    pytest.importorskip("onnxruntime", reason="mnft[onnx] is not installed")
    model, target = save_model(tmp_path / "model"), tmp_path / "onnx"
    options = ("--data", pictures, "--format", "onnx", "-o", target, "--embed-preprocessing")
    assert run_cli("export", "--ckpt", model, *options).exit_code == 0
    ours, theirs = (
        json.loads(judged(path, pictures, "--json", "-o", tmp_path / name).stdout)["robustness"]
        for name, path in (("ours", model), ("theirs", target / "model.onnx"))
    )
    assert theirs["corruptions"] == ours["corruptions"]


def test_several_labels_an_image(tmp_path: Path, judged: Cli) -> None:
    pictures = build(tmp_path / "pictures", {"all": 12}, (80, 60))
    labels = ["a", "b", "c", "a;b", "b;c", "", "a", "b", "c", "a;c", "a", "b"]
    rows = [f"all/{number:03d}.png,{label}" for number, label in enumerate(labels)]
    (pictures / "labels.csv").write_text("\n".join(["path,labels", *rows]))
    model = save_model(tmp_path / "model", "multilabel")
    result = judged(model, pictures / "labels.csv", "-o", tmp_path / "out", "--json")
    found = json.loads(result.stdout)["robustness"]
    assert found["figure"] == "map"
    values: list[Any] = [level["value"] for e in found["corruptions"] for level in e["levels"]]
    assert len(set(values)) > 5
    assert all(0 <= value <= 1 for value in values)
    assert (
        (tmp_path / "out/robustness.csv").read_text().startswith("corruption,unit,level,amount,map")
    )
