"""What a report shows of a classifier: nothing computed twice, every pair at least once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnft.errors import CheckpointError
from mnft.tasks.classify.metrics import compute_evaluation, softmax
from mnft.tasks.classify.predictions import Predictions, write_evaluation
from mnft.tasks.classify.report.build import build_report
from mnft.tasks.classify.report.images import read_images
from mnft.tasks.panels import (
    Chart,
    Chooser,
    EvaluationFiles,
    Gallery,
    Matrix,
    Panel,
    Table,
    TaskReport,
)

HOSTILE = ("=1+1", "<script>alert(1)</script>", "a\rb", "zahra زهرة", "花")


def evaluate(
    folder: Path,
    logits: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any],
    names: tuple[str, ...],
) -> EvaluationFiles:
    evaluation = compute_evaluation(logits, targets, names)
    paths = [f"{names[target]}/{i}.jpg" for i, target in enumerate(targets)]
    write_evaluation(
        folder,
        evaluation,
        Predictions(paths, targets, softmax(logits)),
        names,
        header={"split": "test"},
        unreadable={"broken.jpg": "cut off"},
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return EvaluationFiles(folder, metrics, names, 200)


def draw(n: int, names: tuple[str, ...], noise: float = 1.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, len(names), n)
    logits = rng.normal(0, noise, (n, len(names)))
    logits[np.arange(n), targets] += 1.5
    return logits.astype(np.float32), targets


def block(panel: Panel, kind: type) -> Any:
    return next(b for b in panel.blocks if isinstance(b, kind))


def panels(found: TaskReport) -> dict[str, Panel]:
    return {panel.key: panel for panel in found.panels}


@pytest.fixture
def report(tmp_path: Path) -> tuple[TaskReport, EvaluationFiles, Any, Any]:
    logits, targets = draw(300, HOSTILE)
    files = evaluate(tmp_path / "eval", logits, targets, HOSTILE)
    return build_report(files), files, logits, targets


def test_names_that_are_no_plain_text_are_read_back(tmp_path: Path) -> None:
    logits, targets = draw(50, HOSTILE)
    files = evaluate(tmp_path / "eval", logits, targets, HOSTILE)
    images = read_images(files.folder, HOSTILE)
    assert images.targets.tolist() == targets.tolist()
    assert images.predictions.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(images.confidences, softmax(logits).max(1), rtol=1e-5)
    np.testing.assert_allclose(images.own, softmax(logits)[range(50), targets], rtol=1e-5)


def test_the_verdict_is_that_of_metrics_json(report: Any) -> None:
    found, files, _, targets = report
    metrics = files.metrics
    verdict = found.verdict
    assert verdict.figure == f"{metrics['accuracy']:.1%}"
    assert verdict.low == f"{metrics['accuracy_interval']['low']:.1%}"
    majority = np.bincount(targets).max() / len(targets)
    assert f"{majority:.1%}" in verdict.beside.values()
    assert found.hub_metrics["accuracy"] == metrics["accuracy"]


def test_the_matrix_and_its_pictures_are_those_of_the_predictions(report: Any) -> None:
    found, _, logits, targets = report
    matrix = block(panels(found)["confusion"], Matrix)
    gallery = block(panels(found)["mistakes"], Gallery)
    said = logits.argmax(1)
    for row in range(5):
        for column in range(5):
            n = int(((targets == row) & (said == column)).sum())
            cell = matrix.cells[row][column]
            assert cell.text == str(n or "")
            if n and row != column:
                assert gallery.groups[cell.link][1] == n
                assert f"{n} image" in cell.label
            else:
                assert cell.link is None
    assert gallery.total == int((said != targets).sum())


def test_the_most_confident_mistake_is_first_and_each_pair_is_there(report: Any) -> None:
    _, files, logits, targets = report
    limited = EvaluationFiles(files.folder, files.metrics, files.labels, 22)
    gallery = block(panels(build_report(limited))["mistakes"], Gallery)
    sure = [picture.sure for picture in gallery.pictures]
    assert sure == sorted(sure, reverse=True)
    assert len(sure) == 22 < gallery.total
    said, confident = logits.argmax(1), softmax(logits).max(1)
    assert sure[0] == pytest.approx(confident[said != targets].max(), rel=1e-4)
    pairs = {(a, b) for a, b in zip(targets.tolist(), said.tolist(), strict=True) if a != b}
    assert {picture.group for picture in gallery.pictures} == {f"{a}-{b}" for a, b in pairs}


def test_the_chooser_counts_what_a_threshold_keeps(report: Any) -> None:
    found, _, logits, targets = report
    chooser = block(panels(found)["confidence"], Chooser)
    said, confident = logits.argmax(1), softmax(logits).max(1)
    assert len(chooser.steps) == 100
    for threshold, kept, right in chooser.steps[::7]:
        passes = confident >= threshold
        assert kept == passes.sum()
        assert right == (passes & (said == targets)).sum()


def test_the_reliability_diagram_has_all_images_once(report: Any) -> None:
    chart = block(panels(report[0])["confidence"], Chart)
    numbers = [point.name.split() for point in chart.series[0].points]
    assert sum(int(words[2]) for words in numbers) == 300
    for point, words in zip(chart.series[0].points, numbers, strict=True):
        assert point.y == int(words[0]) / int(words[2])
        assert point.low <= point.y <= point.high


def test_classes_are_those_of_metrics_json_the_worst_first(report: Any) -> None:
    found, files, _, _ = report
    rows = block(panels(found)["classes"], Table).rows
    f1 = [row[4].value for row in rows]
    assert f1 == sorted(entry["f1"] for entry in files.metrics["per_class"])
    by_name = {entry["name"]: entry for entry in files.metrics["per_class"]}
    for row in rows:
        assert row[2].value == by_name[row[0].text]["recall"]
        assert row[2].low <= row[2].value <= row[2].high


def test_no_mistakes(tmp_path: Path) -> None:
    targets = np.array([0, 1, 2, 0, 1, 2])
    logits = (10 * np.eye(3)[targets]).astype(np.float32)
    found = build_report(evaluate(tmp_path / "eval", logits, targets, ("a", "b", "c")))
    assert "None of the 6 images" in panels(found)["mistakes"].lead
    assert found.verdict.figure == "100.0%"


def test_many_classes_have_pairs_instead_of_a_matrix(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(41))
    found = build_report(evaluate(tmp_path / "eval", *draw(400, names), names))
    blocks = panels(found)["confusion"].blocks
    assert not [b for b in blocks if isinstance(b, Matrix)]
    table = block(panels(found)["confusion"], Table)
    numbers = [row[2].value for row in table.rows]
    assert len(numbers) == 30
    assert numbers == sorted(numbers, reverse=True)


def test_a_class_without_images_and_small_ones_are_named(tmp_path: Path) -> None:
    targets = np.array([0] * 20 + [1] * 3)
    logits = (5 * np.eye(3)[targets]).astype(np.float32)
    warnings = build_report(
        evaluate(tmp_path / "eval", logits, targets, ("many", "few", "none"))
    ).verdict.warnings
    assert any("without an image" in w and "none" in w for w in warnings)
    assert any("fewer than 10" in w and "few" in w for w in warnings)


def test_a_model_no_better_than_the_majority_is_called_so(tmp_path: Path) -> None:
    targets = np.array([0] * 30 + [1] * 20)
    logits = np.tile(np.float32([1, 0]), (50, 1))
    found = build_report(evaluate(tmp_path / "eval", logits, targets, ("a", "b")))
    assert any("not surely better" in warning for warning in found.verdict.warnings)


def test_damaged_predictions_are_an_error_that_helps(report: Any) -> None:
    files = report[1]
    path = files.folder / "predictions.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("target", "tar"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"predictions\.csv") as error:
        build_report(files)
    assert "mnft eval" in str(error.value.hint)
