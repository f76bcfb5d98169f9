"""The files of one evaluation: figures as JSON, predictions and counts as CSV, plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mnft.files import atomic_folder, write_csv
from mnft.tasks.classify.decision.calibration import ECE_BINS, Calibration
from mnft.tasks.classify.decision.threshold import answer, compute_curve
from mnft.tasks.classify.evaluation import (
    MACRO_OVER,
    PER_CLASS,
    UNKNOWN_IMAGES,
    Evaluation,
)
from mnft.tasks.classify.intervals import INTERVAL_LEVEL, compute_wilson_interval
from mnft.tasks.outputs import METRICS
from mnft.text import guard_cell

PREDICTIONS = "predictions.csv"
CONFUSION = "confusion_matrix.csv"
PLOT = "confusion_matrix.png"
RELIABILITY = "reliability.png"
MISTAKES = "worst_mistakes.png"
COVERAGE, COVERAGE_PLOT = "risk_coverage.csv", "risk_coverage.png"
EVALUATION_FILES = frozenset(
    {
        *(METRICS, PREDICTIONS, PER_CLASS, CONFUSION, PLOT, RELIABILITY, MISTAKES),
        *(COVERAGE, COVERAGE_PLOT, UNKNOWN_IMAGES),
    }
)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model predicted for each image.

    Attributes:
        paths: N paths, as predictions.csv gives them.
        targets: (N,) int in [0, C).
        probabilities: (N, C) float in [0, 1], best from `metrics.softmax`, whose float64 keeps the
            argmax of the logits, so that predictions agree with the confusion matrix.
    """

    paths: list[str]
    targets: NDArray[Any]
    probabilities: NDArray[Any]


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    predictions: Predictions,
    class_names: Sequence[str],
    *,
    header: dict[str, Any],
    unreadable: Mapping[str, str] | None = None,
    root: Path | None = None,
    other: int | None = None,
) -> None:
    """Write an evaluation as a folder that appears whole or not at all.

    The folder takes the place of an older one and holds metrics.json, predictions.csv,
    per_class.csv, confusion_matrix.csv and .png, reliability.png, risk_coverage.csv and .png; where
    `root` is given and there are mistakes, worst_mistakes.png; and unknown.csv, if images of none
    of the classes were judged. In the CSV files a path or class
    name that starts with `=`, `+`, `-`, `@`, a tab or a carriage return gets a leading apostrophe,
    so that a spreadsheet does not run it as a formula. Carriage returns, and bytes of a file name
    that are not UTF-8, are written as backslash escapes.

    Args:
        folder: where the files go.
        evaluation: the figures.
        predictions: one row an image.
        class_names: C names, in the order of the probabilities.
        header: what was evaluated (checkpoint, split, data, ...), JSON values; the first keys of
            metrics.json.
        unreadable: path and reason of files that could not be decoded; they follow the others in
            predictions.csv, with the reason as `error` and no prediction.
        root: folder of the images, which `paths` are below.
        other: the output for images of none of the classes, or None.
    """
    # `mnft predict` needs this module, but not matplotlib, which is slow to import.
    from mnft.tasks.classify.panels.confusion import plot_confusion
    from mnft.tasks.classify.panels.coverage import plot_coverage
    from mnft.tasks.classify.panels.mistakes import plot_mistakes, plot_reliability

    num_images, num_classes = predictions.probabilities.shape
    lengths = {len(predictions.paths), len(predictions.targets), evaluation.num_images}
    if lengths != {num_images}:
        raise ValueError(f"{num_images} rows of probabilities for {lengths} paths, targets, images")
    if not len(class_names) == len(evaluation.confusion) == num_classes:
        raise ValueError(f"{num_classes} columns of probabilities for {len(class_names)} classes")
    figures = _describe_figures(evaluation)
    if taken := sorted(header.keys() & figures):
        raise ValueError(f"the header uses names of figures: {taken}")
    text = json.dumps(header | figures, indent=2, ensure_ascii=False, allow_nan=False)
    names = [guard_cell(name) for name in class_names]
    low, high = evaluation.accuracy_interval
    title = (
        f"accuracy {evaluation.accuracy:.1%} ({INTERVAL_LEVEL:.0%} interval {low:.1%} to "
        f"{high:.1%}), macro F1 {evaluation.macro.f1:.3f}, {evaluation.num_images} images"
    )
    targets, probabilities = predictions.targets, predictions.probabilities
    predicted, scores = answer(probabilities, other)
    known = targets != (-1 if other is None else other)
    scores, correct = scores[known], (predicted == targets)[known]
    with atomic_folder(folder) as new:
        # A lone surrogate, from a file name that is not UTF-8, becomes \udcXX: JSON's own escape.
        (new / METRICS).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        write_csv(new / PREDICTIONS, _prediction_rows(predictions, names, unreadable or {}))
        rows: list[list[object]] = [["class", "precision", "recall", "f1", "support", "predicted"]]
        for row in evaluation.per_class:
            fractions = [f"{value:.6g}" for value in (row.precision, row.recall, row.f1)]
            rows.append([guard_cell(row.name), *fractions, row.support, row.predicted])
        write_csv(new / PER_CLASS, rows)
        counts = [[name, *row] for name, row in zip(names, evaluation.confusion, strict=True)]
        write_csv(new / CONFUSION, [["true \\ predicted", *names], *counts])
        plot_confusion(evaluation.confusion, class_names, new / PLOT, title=title)
        plot_reliability(targets, probabilities, new / RELIABILITY, ece=evaluation.ece)
        write_csv(new / COVERAGE, _coverage_rows(scores, correct))
        plot_coverage(scores, correct, new / COVERAGE_PLOT, decision=evaluation.decision)
        if evaluation.unknown is not None:
            unknown = [
                [guard_cell(row.path), guard_cell(row.name), f"{row.probability:.6g}", row.passes]
                for row in evaluation.unknown_rows
            ]
            write_csv(new / UNKNOWN_IMAGES, [["path", "class", "probability", "passes"], *unknown])
        if root is not None:
            paths = predictions.paths
            plot_mistakes(root, paths, targets, probabilities, class_names, new / MISTAKES)


def _describe_figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures under their names in metrics.json."""
    low, high = evaluation.accuracy_interval
    return {
        "num_images": evaluation.num_images,
        "num_known_images": evaluation.num_known,
        "num_classes": len(evaluation.per_class),
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
        "accuracy_interval": {
            "low": low,
            "high": high,
            "level": INTERVAL_LEVEL,
            "method": "wilson",
        },
        "top5_accuracy": evaluation.top5,
        "macro": asdict(evaluation.macro),
        "macro_over": MACRO_OVER,
        "weighted": asdict(evaluation.weighted),
        "expected_calibration_error": evaluation.ece,
        "calibration_bins": ECE_BINS,
        "temperature": evaluation.temperature,
        "calibration": _describe_calibration(evaluation.calibration),
        "uncalibrated": evaluation.uncalibrated and _describe_calibration(evaluation.uncalibrated),
        "decision": evaluation.decision and evaluation.decision.as_record(),
        "other": evaluation.other and evaluation.other.as_record(),
        "unknown": evaluation.unknown and evaluation.unknown.as_record(),
        "per_class": [asdict(metrics) for metrics in evaluation.per_class],
    }


def _describe_calibration(found: Calibration) -> dict[str, Any]:
    interval = {"level": INTERVAL_LEVEL, "method": "bootstrap", **found.ece_interval._asdict()}
    return asdict(found) | {"ece_interval": interval}


def _coverage_rows(scores: NDArray[Any], correct: NDArray[Any]) -> Iterable[list[str]]:
    """What each threshold that parts the images keeps, the highest first."""
    yield ["threshold", "kept", "kept_fraction", "accuracy", "accuracy_low", "accuracy_high"]
    for level, kept, hits in zip(*compute_curve(scores, correct), strict=True):
        low, high = compute_wilson_interval(int(hits), int(kept))
        fractions = (kept / len(scores), hits / kept, low, high)
        yield [f"{level:.9g}", str(kept), *(f"{value:.6g}" for value in fractions)]


def _prediction_rows(
    predictions: Predictions, names: list[str], unreadable: Mapping[str, str]
) -> Iterable[list[str]]:
    columns = [f"p_{name}" for name in names]
    yield ["path", "target", "prediction", "confidence", "correct", "error", *columns]
    predicted = predictions.probabilities.argmax(axis=1).tolist()
    rows = zip(
        predictions.paths,
        predictions.targets.tolist(),
        predicted,
        predictions.probabilities,
        strict=True,
    )
    for path, target, prediction, probabilities in rows:
        shown = [f"{probability:.6g}" for probability in probabilities.tolist()]
        correct = str(int(prediction == target))
        said = [names[prediction], shown[prediction], correct]
        yield [guard_cell(path), names[target], *said, "", *shown]
    for path, reason in unreadable.items():
        yield [guard_cell(path), "", "", "", "", guard_cell(reason), *[""] * len(names)]
