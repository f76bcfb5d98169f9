"""Models that may be silent, from the config to the answers of an exported file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from mnft.cli.app import app
from mnft.evaluation.checkpoint import open_checkpoint
from mnft.exports.artifact import read_artifact
from mnft.model.bundle import load_bundle

COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 40), "red": (220, 30, 20)}
Run = Callable[..., Result]


def write_mixtures(root: Path, per_class: int, seed: int) -> None:
    """Colours that are mixed with another class's; from 40% on a mixture may be of either."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            share = rng.uniform(0, 0.6)
            own, another = (
                np.array(COLOURS[names[(place + step) % 3]]) for step in (0, rng.integers(1, 3))
            )
            noise = rng.integers(-20, 20, (24, 24, 3))
            pixels = np.clip((1 - share) * own + share * another + noise, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03d}.png")


def write_grey(folder: Path, count: int, seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(60, 200) + rng.integers(-20, 20, (24, 24, 1)).repeat(3, axis=2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")


@pytest.fixture(scope="module")
def mnft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("decide")
    for seed, split in enumerate(("train", "val", "test")):
        write_mixtures(folder / "images" / split, 40, seed)
    write_grey(folder / "grey", 60, 3)
    write_grey(folder / "street", 30, 4)
    sections: dict[str, Any] = {
        "data": {"root": "images", "other": "grey", "workers": 0},
        "model": {"name": "lenet5", "pretrained": False},
        "train": {
            "epochs": 15,
            "batch_size": 8,
            "label_smoothing": 0.3,
            "precision": "fp32",
            "device": "cpu",
        },
        "decision": {"target_accuracy": 0.9},
        "optim": {"lr": 0.003},
        "augment": {"scale": [0.9, 1.0]},
        "run": {"tensorboard": False, "name": "a"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(sections))

    def run(*args: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.stderr
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("train", "c.yaml")
        yield run


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_csv(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))


def decision_of(folder: Path) -> dict[str, Any]:
    return load(folder / "config.json")["mnft"]["settings"]["decision"]


def test_a_training_keeps_temperature_and_threshold_with_the_model(mnft: Run) -> None:
    decision = decision_of(Path("runs/a/best"))
    assert decision["temperature"] != 1
    assert 0 < decision["threshold"] < 1
    assert decision["val"]["accuracy"] >= 0.9
    assert decision["val"]["images"] == 120
    assert decision["val"]["other"]["images"] == 9
    assert decision["other_index"] == 3
    assert load(Path("runs/a/best/config.json"))["label_names"] == [*COLOURS, "_other"]


@pytest.fixture(scope="module")
def evaluated(mnft: Run) -> dict[str, Any]:
    result = mnft("eval", "runs/a", "--split", "val", "--unknown", "street", "-o", "val", "--json")
    return json.loads(result.stdout)


def test_eval_on_val_gives_what_the_decision_was_chosen_for(evaluated: dict[str, Any]) -> None:
    decision = decision_of(Path("runs/a/best"))
    for key in ("kept", "accuracy", "threshold"):
        assert evaluated["decision"][key] == decision["val"][key]
    assert evaluated["loss"] == pytest.approx(decision["val"]["loss"], rel=1e-4)
    assert evaluated["uncalibrated"]["nll"] == pytest.approx(decision["val"]["loss_before"], 1e-4)
    assert evaluated["other"]["accepted"] == decision["val"]["other"]["accepted"]


def test_eval_writes_the_curve_and_the_unknown_images(evaluated: dict[str, Any]) -> None:
    rows = read_csv("val/risk_coverage.csv")
    decision = evaluated["decision"]
    (row, *_) = [r for r in rows if float(r["kept_fraction"]) == pytest.approx(decision["kept"])]
    assert float(row["accuracy"]) == pytest.approx(decision["accuracy"], abs=1e-6)
    assert (Path("val") / "risk_coverage.png").stat().st_size > 0
    unknown = read_csv("val/unknown.csv")
    assert len(unknown) == evaluated["unknown"]["num_images"] == 30
    passed = sum(row["passes"] == "True" for row in unknown)
    assert passed / 30 == evaluated["unknown"]["accepted"]
    assert evaluated["unknown"]["auroc"] > 0.9


def test_people_are_told(mnft: Run) -> None:
    shown = mnft("eval", "runs/a", "--unknown", "street", "-o", "told").stdout
    for words in ("a class is named for", "are taken for a class", "unknown image", "uncalibrated"):
        assert words in shown


def rows_of(result: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(result.stdout)))


@pytest.mark.parametrize("options", [(), ("--embed-preprocessing",)])
def test_an_exported_file_is_calibrated_and_as_silent_as_the_model(
    mnft: Run, options: tuple[str, ...]
) -> None:
    pytest.importorskip("onnxruntime")
    folder = Path("exports") / ("embedded" if options else "plain")
    mnft("export", "runs/a", "-o", folder, *options)
    decision, record = decision_of(Path("runs/a/best")), load(folder / "model.json")
    assert record["settings"]["decision"] == decision
    assert record["settings"]["temperature_folded"] is True
    # The file gives the logits of the trained weights divided by the temperature.
    raw, artifact = load_bundle(Path("runs/a/best")).model, read_artifact(folder)
    images = torch.randn(16, *artifact.preprocessing.input_size)
    images = (images * 0.3).clamp(-1, 1)
    exported = open_checkpoint(folder).bundle.model
    with torch.inference_mode():
        if options:  # whole grey levels, as the file takes them
            std = torch.tensor(artifact.preprocessing.std).view(-1, 1, 1)
            mean = torch.tensor(artifact.preprocessing.mean).view(-1, 1, 1)
            images = (((images * std + mean) * 255).round().clamp(0, 255) / 255 - mean) / std
        expected = (raw(images) / decision["temperature"]).softmax(1)
        found = exported(images).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    pictures = ("images/test", "street")
    ours, theirs = (
        rows_of(mnft("predict", "--ckpt", ckpt, *pictures)) for ckpt in ("runs/a", folder)
    )
    said = [row["class_1"] for row in ours]
    assert said == [row["class_1"] for row in theirs]
    assert 0 < said.count("unknown") < len(said)
    assert "_other" not in said
    likely = [[float(row["probability_1"]) for row in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(*likely, atol=1e-4)


def test_json_lines_have_the_guess(mnft: Run) -> None:
    lines = mnft("predict", "--ckpt", "runs/a", "street", "--json").stdout.splitlines()
    first = json.loads(lines[0])
    assert first["predictions"][0]["class"] == "unknown"
    assert first["guess"] in COLOURS


def test_decide_changes_only_the_decision(mnft: Run) -> None:
    import shutil

    shutil.copytree("runs/a", "runs/b")
    before = load_bundle(Path("runs/b/best"))
    mnft("decide", "runs/b", "--target-accuracy", "0.8")
    after, decision = load_bundle(Path("runs/b/best")), decision_of(Path("runs/b/best"))
    assert decision["target_accuracy"] == 0.8
    assert decision["threshold"] < decision_of(Path("runs/a/best"))["threshold"]
    assert decision["temperature"] == decision_of(Path("runs/a/best"))["temperature"]
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name
    same = {k: v for k, v in before.record.items() if k != "config_sha256"}
    assert same == {k: v for k, v in after.record.items() if k != "config_sha256"}
    mnft("decide", "runs/b", "--set", "decision.calibrate=false")
    assert decision_of(Path("runs/b/best"))["temperature"] == 1
    mnft("decide", "runs/b", "--target-accuracy", "0.9")
    assert decision_of(Path("runs/b/best")) == decision_of(Path("runs/a/best"))


def test_a_target_out_of_reach_does_not_lose_a_training(mnft: Run) -> None:
    sets = ("train.epochs=1", "optim.lr=1e-6", "decision.target_accuracy=1.0", "run.name=c")
    result = mnft("train", "c.yaml", *(part for value in sets for part in ("--set", value)))
    assert "no threshold gives an accuracy of 1 on val" in " ".join(result.stderr.split())
    assert decision_of(Path("runs/c/best"))["threshold"] is None
    assert "best" in decision_of(Path("runs/c/best"))["val"]
    rows = rows_of(mnft("predict", "--ckpt", "runs/c", "images/test/red"))
    assert {row["class_1"] for row in rows} <= {*COLOURS, "unknown"}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("eval", "runs/a", "--unknown", "nothing"), 1, "no such folder"),
        (("eval", "runs/a", "--unknown", "c.yaml"), 1, "is a file"),
        (("decide", "runs/a", "--target-accuracy", "1.5"), 2, "decision.target_accuracy"),
        (
            ("train", "c.yaml", "--set", "run.name=x", "--set", "data.other=images/val/red"),
            1,
            "same bytes",
        ),
        (("train", "c.yaml", "--set", "task=multilabel"), 2, "decision: found with task"),
        (
            ("train", "c.yaml", "--set", "task=multilabel", "--set", "decision={}"),
            2,
            "data.other: found with task: multilabel",
        ),
    ],
)
def test_wrong_input(mnft: Run, args: tuple[str, ...], code: int, message: str) -> None:
    assert message in " ".join(mnft(*args, code=code).stderr.split())


def test_a_class_that_is_called_unknown_is_refused(mnft: Run) -> None:
    import shutil

    shutil.copytree("images", "named")
    for split in ("train", "val", "test"):
        Path("named", split, "red").rename(Path("named", split, "unknown"))
    result = mnft("train", "c.yaml", "--set", "data.root=named", "--set", "run.name=d", code=2)
    assert "also the answer" in " ".join(result.stderr.split())


def test_compare_shows_what_each_threshold_keeps(mnft: Run) -> None:
    mnft("compare", "runs/a", "-o", "comparison", "--rounds", 1)
    page = Path("comparison/comparison.md").read_text()
    assert "accuracy of kept" in page
    (row,) = read_csv("comparison/comparison.csv")
    assert 0 < float(row["kept"]) < 1
