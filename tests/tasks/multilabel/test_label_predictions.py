"""The files of an evaluation: what they say, and that the plots are drawn."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnft.results import EpochResult
from mnft.tasks import open_task
from mnft.tasks.multilabel.panels.labels import compute_curve
from mnft.tasks.multilabel.predictions import EVALUATION_FILES
from mnft.tasks.outputs import Outputs

LABELS = ("=beard", "_$hat$", "花")
SETTINGS = {"thresholds": {"=beard": 0.5, "_$hat$": 0.9, "花": 0.5}}


def build(count: int = 40, labels: tuple[str, ...] = LABELS) -> Outputs:
    generator = np.random.default_rng(0)
    targets = (generator.random((count, len(labels))) < 0.3).astype(np.float32)
    logits = 2 * targets + generator.normal(size=targets.shape) - 1
    targets[0, min(1, len(labels) - 1)] = math.nan
    return Outputs(np.arange(count), logits.astype(np.float32), targets, {})


def write(folder: Path, outputs: Outputs, labels: tuple[str, ...] = LABELS, **more: Any) -> Path:
    task = open_task(labels, "multilabel", more.pop("settings", None))
    paths = [f"{i}.png" for i in range(len(outputs.values))]
    options: dict[str, Any] = {"header": {"split": "test"}, "unreadable": {}, "root": folder}
    task.write_evaluation(
        folder / "eval", task.evaluate(outputs), outputs, paths, **(options | more)
    )
    return folder / "eval"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_files(tmp_path: Path) -> None:
    outputs = build()
    folder = write(tmp_path, outputs, settings=SETTINGS, unreadable={"x.png": "no image"})
    assert {file.name for file in folder.iterdir()} == EVALUATION_FILES
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["split"], metrics["num_images"], metrics["num_labels"]) == ("test", 40, 3)
    assert [m["known"] for m in metrics["per_label"]] == [40, 39, 40]
    assert metrics["per_label"][1]["threshold"] == pytest.approx(0.9)
    rows = read(folder / "predictions.csv")
    assert len(rows) == 41
    assert rows[0]["target__$hat$"] == ""
    for row, logits, targets in zip(rows, outputs.values, outputs.targets, strict=False):
        p = 1 / (1 + math.exp(-logits[1]))
        assert float(row["p__$hat$"]) == pytest.approx(p, rel=1e-5)
        assert row["decision__$hat$"] == str(int(p >= 0.9))
        decided = [logits[0] >= 0, p >= 0.9, logits[2] >= 0]
        right = [math.isnan(t) or bool(t) == d for t, d in zip(targets, decided, strict=True)]
        assert row["exact"] == str(int(all(right)))
    assert (rows[40]["path"], rows[40]["error"], rows[40]["p_花"]) == ("x.png", "no image", "")
    labels = read(folder / "per_label.csv")
    assert [row["label"] for row in labels] == ["'=beard", "_$hat$", "花"]
    for row, m in zip(labels, metrics["per_label"], strict=True):
        assert float(row["average_precision"]) == pytest.approx(m["average_precision"], rel=1e-5)
        assert float(row["recall_low"]) == pytest.approx(m["recall_interval"]["low"], rel=1e-5)


def test_labels_without_images_leave_cells_empty(tmp_path: Path) -> None:
    outputs = build(4)
    outputs.targets[:, 2] = 0
    folder = write(tmp_path, outputs)
    row = read(folder / "per_label.csv")[2]
    assert (row["average_precision"], row["recall_low"], row["support"]) == ("", "", "0")
    assert json.loads((folder / "metrics.json").read_text())["labels_in_map"] <= 2


def test_a_header_with_the_name_of_a_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="map"):
        write(tmp_path, build(), header={"map": 1})


@pytest.mark.plots
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 3, 60])
def test_plots_are_drawn_for_few_and_many_labels(tmp_path: Path, count: int) -> None:
    labels = tuple([*LABELS, *(f"label {i}" for i in range(count))][:count])
    folder = write(tmp_path, build(50, labels), labels)
    heights = []
    for name in ("precision_recall.png", "average_precision.png"):
        with Image.open(folder / name) as image:
            heights.append(image.height)
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    assert (heights[1] > 800) == (count == 60)


@pytest.mark.plots
def test_plots_of_nothing_that_can_be_drawn(tmp_path: Path) -> None:
    outputs = build(3)
    outputs.targets[:] = 0
    assert (write(tmp_path, outputs) / "precision_recall.png").stat().st_size > 1000


def test_the_curve_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.1, 0.5])
    precision, recall = compute_curve(scores, np.array([1, 0, 1, 1, math.nan]))
    assert precision.tolist() == pytest.approx([1, 1, 2 / 3, 3 / 4])
    assert recall.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.plots
@pytest.mark.parametrize("monitor", ["map", "macro_f1", "micro_f1", "loss"])
def test_the_curve_of_a_training(tmp_path: Path, monitor: str) -> None:
    names = ("train_loss", "train_exact", "val_loss", "val_map", "val_macro_f1", "val_micro_f1")
    results = [
        EpochResult(
            epoch, 2, dict.fromkeys(names, 0.3 + epoch / 10), 1e-3, 1.0, 1.0, epoch == 1, stage
        )
        for epoch, stage in enumerate(("head", "finetune", "finetune"))
    ]
    path = tmp_path / "curve.png"
    open_task(LABELS, "multilabel").plot_training(results, path, monitor)
    with Image.open(path) as image:
        assert image.width > 800
