"""From images to an int8 file, on generated pictures with several shapes each."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from mnft.cli.app import app
from mnft.data.batches.batch import normalize
from mnft.data.decode import decode
from mnft.exports.artifact import read_artifact
from mnft.exports.session import open_session
from mnft.model.bundle import load_bundle

SHAPES = {"circle": (220, 40, 30), "square": (30, 60, 220), "triangle": (20, 190, 50)}
TABLE = {
    "circle": 24,
    "square": 24,
    "circle;square": 24,
    "square;triangle": 24,
    "circle;square;triangle": 12,
    "": 16,
    "?circle;triangle": 24,
}
SIZE = 40
Run = Callable[..., str]


def draw(names: list[str], seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    noise = generator.integers(90, 150, (SIZE, SIZE, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    pencil = ImageDraw.Draw(image)
    for name in names:
        x, y = generator.integers(0, SIZE - 14, 2).tolist()
        box, colour = (x, y, x + 13, y + 13), SHAPES[name]
        if name == "circle":
            pencil.ellipse(box, fill=colour)
        elif name == "square":
            pencil.rectangle(box, fill=colour)
        else:
            pencil.polygon([(x, y + 13), (x + 13, y + 13), (x + 6, y)], fill=colour)
    return image


def write_pictures(root: Path) -> None:
    """Pictures with a table that has a column for each label; empty cells are not known."""
    rows = [["path", *SHAPES]]
    for label, count in TABLE.items():
        has = label.split(";")
        for _ in range(count):
            path = f"{len(rows):03d}.png"
            draw([name.removeprefix("?") for name in has if name], len(rows)).save(root / path)
            known = {name: "" if f"?{name}" in has else str(int(name in has)) for name in SHAPES}
            rows.append([path, *known.values()])
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def mnft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run `mnft ...` in one folder, where the images are "pictures", and give what it prints."""
    folder = tmp_path_factory.mktemp("multilabel")
    (folder / "pictures").mkdir()
    write_pictures(folder / "pictures")

    def run(*args: object) -> str:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.stderr
        return result.stdout

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run


@pytest.fixture(scope="module")
def trained(mnft: Run) -> Path:
    sections: dict[str, Any] = {
        "task": "multilabel",
        "data": {"root": "pictures/labels.csv", "workers": 0, "img_size": 40},
        "model": {"name": "lenet5", "pretrained": False},
        "train": {"epochs": 6, "batch_size": 16, "precision": "fp32", "device": "cpu"},
        "augment": {"scale": [0.8, 1.0]},
        "optim": {"lr": 0.002},
        "run": {"tensorboard": False, "name": "a"},
    }
    sections["train"]["stages"] = ["head", "finetune"]
    Path("c.yaml").write_text(yaml.safe_dump(sections))
    mnft("train", "c.yaml")
    return Path("runs/a")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def predict(mnft: Run, *args: object) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(mnft("predict", *args)))
    return {Path(row["path"]).name: row for row in rows}


def test_a_training_records_figures_thresholds_and_its_monitor(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert len(epochs) == 7
    best = next(line for line in reversed(epochs) if line["is_best"])
    assert best["val_map"] == max(line["val_map"] for line in epochs) > 0.9
    assert epochs[-1]["train_loss"] < epochs[1]["train_loss"]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (config["eval"]["monitor"], config["multilabel"]["loss"]) == ("map", "bce")
    assert load_bundle(trained / "best").settings == best["settings"]
    assert set(best["settings"]["thresholds"]) == set(SHAPES)


def test_an_evaluation_on_val_repeats_the_figures_of_the_best_epoch(
    mnft: Run, trained: Path
) -> None:
    mnft("eval", "--ckpt", trained, "--split", "val")
    metrics = load(trained / "eval-val" / "metrics.json")
    best = load_bundle(trained / "best").record["result"]
    for name in ("loss", "map", "macro_f1", "micro_f1"):
        assert metrics[name] == pytest.approx(best[f"val_{name}"], rel=1e-5)
    known = [label["known"] for label in metrics["per_label"]]
    assert min(known) < metrics["num_images"]
    shown = json.loads(mnft("eval", "--ckpt", trained, "--json"))
    assert shown["map"] > 0.8
    assert shown["map_interval"]["low"] <= shown["map"] <= shown["map_interval"]["high"]


def test_plain_timm_gives_the_probabilities_of_predict(mnft: Run, trained: Path) -> None:
    rows = predict(mnft, "--ckpt", trained, "pictures")
    assert len(rows) == sum(TABLE.values())
    model = timm.create_model(f"local-dir:{trained / 'best'}", pretrained=True).eval()
    bundle = load_bundle(trained / "best")
    path = Path("pictures/050.png")
    pixels = torch.from_numpy(np.asarray(decode(path)).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = model(normalize(pixels, bundle.preprocessing))
    probabilities = torch.sigmoid(logits)[0].tolist()
    row = rows["050.png"]
    assert [float(row[f"p_{name}"]) for name in SHAPES] == pytest.approx(probabilities, abs=2e-6)
    thresholds = bundle.settings["thresholds"]
    decided = [n for n, p in zip(SHAPES, probabilities, strict=True) if p >= thresholds[n]]
    assert row["labels"] == ";".join(decided)
    record = json.loads(mnft("predict", "--ckpt", trained, path, "--json"))
    assert record["labels"] == decided
    assert list(record["probabilities"].values()) == pytest.approx(probabilities, abs=2e-6)


@pytest.mark.parametrize("embedded", [False, True])
def test_an_export_answers_as_the_model(mnft: Run, trained: Path, embedded: bool) -> None:
    output = Path("embedded" if embedded else "plain")
    more = ["--embed-preprocessing"] if embedded else []
    mnft("export", "--ckpt", trained, "--format", "onnx", "-o", output, *more)
    parity = load(output / "parity.json")
    assert parity["passed"]
    assert (parity["agreement"], parity["map_drop"]) == (1.0, 0.0)
    assert parity["of"] == ("probabilities" if embedded else "logits")
    artifact = read_artifact(output)
    assert artifact.settings == load_bundle(trained / "best").settings
    assert artifact.output_name == parity["of"]
    ours, theirs = (predict(mnft, "--ckpt", p, "pictures") for p in (trained, output))
    for name, row in ours.items():
        assert theirs[name]["labels"] == row["labels"]
        assert float(theirs[name]["p_square"]) == pytest.approx(float(row["p_square"]), abs=1e-5)
    if embedded:
        pixels = np.asarray(decode(Path("pictures/007.png")))[None].copy()
        found = open_session(output, artifact).run(pixels)[0]
        expected = [float(ours["007.png"][f"p_{name}"]) for name in SHAPES]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_an_int8_file_and_a_comparison(mnft: Run, trained: Path) -> None:
    mnft("quantize", "--ckpt", trained, "--set", "quantize.method=onnxruntime")
    (record,) = trained.glob("exports/*int8*/quantization.json")
    assert load(record)["map"]["val"]["drop"] <= 0.005
    mnft("compare", trained, record.parent, "--rounds", "1")
    rows = load(Path("comparison/comparison.json"))["models"]
    assert [row["problem"] for row in rows] == [None, None]
    assert all(0.8 < row["map_low"] <= row["map"] <= row["map_high"] <= 1 for row in rows)


def test_a_run_with_everything_else(mnft: Run, trained: Path) -> None:
    keys = [
        "multilabel.loss=asymmetric",
        "multilabel.threshold=precision",
        "train.class_weights=balanced",
        "train.sampler=balanced",
        "train.label_smoothing=0.1",
        "train.epochs=2",
        "augment.mixup=0.2",
        "augment.cutmix=1.0",
        "eval.monitor=macro_f1",
        f"distill.teacher={trained}",
        "run.name=b",
    ]
    mnft("train", "c.yaml", *(part for key in keys for part in ("--set", key)))
    assert load(Path("runs/b/best/mnft.json"))["result"]["val_map"] > 0.5


def test_a_search_chooses_by_mean_average_precision(mnft: Run, trained: Path) -> None:
    sections = yaml.safe_load(Path("c.yaml").read_text())
    sections["train"]["epochs"], sections["run"]["name"] = 1, None
    space = {"optim.lr": [1e-3, 3e-3], "multilabel.loss": ["bce", "asymmetric"]}
    sections["search"] = {"method": "grid", "seeds": 1, "rungs": [0], "space": space}
    Path("s.yaml").write_text(yaml.safe_dump(sections))
    told = json.loads(mnft("search", "s.yaml", "--json"))
    assert told["figure"] == "val_map"
    assert set(told["tried"]) == set(space)
    assert 0 < told["mean"] <= 1
    log = (Path(told["run"]) / "log.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("val_map", 0.0) for line in log) == told["first"]


def test_a_teacher_of_classes_is_refused(trained: Path) -> None:
    config = load(trained / "best" / "config.json")
    record = load(trained / "best" / "mnft.json")
    folder = Path("classifier")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(
        (trained / "best" / "model.safetensors").read_bytes()
    )
    (folder / "config.json").write_text(json.dumps({**config, "mnft": {"task": "classify"}}))
    (folder / "mnft.json").write_text(json.dumps({**record, "config_sha256": {}}))
    result = CliRunner().invoke(
        app, ["train", "c.yaml", "--set", f"distill.teacher=./{folder}", "--set", "run.name=c"]
    )
    assert result.exit_code == 1
    assert "has the same labels, but its task is classify" in " ".join(result.stderr.split())


def test_a_resumed_run_is_the_uninterrupted_one(mnft: Run, trained: Path) -> None:
    mnft("train", "c.yaml", "--set", "run.name=d", "--set", "train.epochs=3")
    mnft("train", "--resume", "runs/d", "--set", "train.epochs=6")
    ours, theirs = (load_bundle(run / "last") for run in (trained, Path("runs/d")))
    assert ours.settings == theirs.settings
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_task_imports_nothing_slow_that_a_training_does_not_need() -> None:
    code = (
        "import sys; from mnft.tasks import open_task; open_task(('a',), 'multilabel');"
        "print(sorted({'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_data_check_and_wrong_labels(mnft: Run, trained: Path) -> None:
    found = json.loads(mnft("data", "check", "c.yaml", "--ckpt", trained, "--json"))
    kinds = {finding["kind"] for finding in found["findings"]}
    assert "no_label" in kinds
    assert found["labels"]["by_model"] + found["labels"]["crosswise"] == sum(TABLE.values())


def test_features_of_another_task_are_not_taken_from_the_cache(mnft: Run) -> None:
    """The cache keeps targets with them: numbers of classes are not rows of labels."""
    root = Path("folders")
    for number, name in enumerate(["circle", "square"] * 12):
        (root / name).mkdir(parents=True, exist_ok=True)
        draw([name], number).save(root / name / f"{number}.png")
    config = yaml.safe_load(Path("c.yaml").read_text())
    config["data"] |= {"root": "folders", "store": "store"}
    config["train"]["stages"] = ["head"]
    for task in ("classify", "multilabel", "classify"):
        config |= {"task": task, "run": {"tensorboard": False, "name": f"{task}"}}
        Path("f.yaml").write_text(yaml.safe_dump(config))
        mnft("train", "f.yaml", "--set", f"run.dir=of-{len(list(Path().glob('of-*')))}")
    first, last = (load_bundle(Path(f"of-{n}/classify/best")).record["result"] for n in (0, 2))
    assert first["val_accuracy"] == last["val_accuracy"]


def test_a_table_without_a_column_of_the_model_is_refused(mnft: Run, trained: Path) -> None:
    Path("one.csv").write_text("path,circle\npictures/001.png,1\n")
    result = CliRunner().invoke(app, ["eval", "--ckpt", str(trained), "--data", "one.csv"])
    assert result.exit_code == 1
    assert "one.csv: no column for square, triangle, which the model knows" in result.stderr
    mnft("eval", "--ckpt", trained, "--data", "pictures/labels.csv", "--split", "val")
