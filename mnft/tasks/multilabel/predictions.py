"""The files of one evaluation: figures as JSON, predictions and labels as CSV, plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.files import atomic_folder, write_csv
from mnft.tasks.multilabel.average_precision import Interval
from mnft.tasks.multilabel.evaluation import MACRO_OVER, PER_LABEL, Evaluation
from mnft.tasks.multilabel.metrics import sigmoid
from mnft.tasks.multilabel.thresholds import decide
from mnft.tasks.outputs import METRICS, Outputs
from mnft.text import guard_cell

PREDICTIONS = "predictions.csv"
CURVES = "precision_recall.png"
BARS = "average_precision.png"
EVALUATION_FILES = frozenset({METRICS, PREDICTIONS, PER_LABEL, CURVES, BARS})


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    outputs: Outputs,
    paths: Sequence[str],
    *,
    header: dict[str, Any],
    unreadable: Mapping[str, str],
    root: Path | None = None,  # noqa: ARG001 - no plot shows images
    thresholds: NDArray[Any],
) -> None:
    """Write an evaluation as a folder that appears whole or not at all.

    The folder takes the place of an older one and holds metrics.json, predictions.csv,
    per_label.csv, precision_recall.png and average_precision.png. In the CSV files a path or label
    that a spreadsheet would run as a formula gets a leading apostrophe.

    Args:
        folder: where the files go.
        evaluation: the figures.
        outputs: the logits and targets.
        paths: N paths, as predictions.csv gives them.
        header: what was evaluated, JSON values; the first keys of metrics.json.
        unreadable: path and reason of files that could not be decoded; they follow the others in
            predictions.csv.
        root: folder of the images.
        thresholds: (K,) logits from which on an image has a label.
    """
    # `mnft predict` needs the task, but not matplotlib, which is slow to import.
    from mnft.tasks.multilabel.panels.labels import plot_average_precision, plot_curves

    if not len(paths) == len(outputs.values) == evaluation.num_images:
        raise ValueError(f"{len(paths)} paths for {len(outputs.values)} images")
    figures = asdict(evaluation) | {
        "num_labels": len(evaluation.per_label),
        "macro_over": MACRO_OVER,
        "interval": {"level": 0.95, "map": "bootstrap over images", "others": "wilson"},
    }
    if taken := sorted(header.keys() & figures):
        raise ValueError(f"the header uses names of figures: {taken}")
    text = json.dumps(header | figures, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_folder(folder) as new:
        # A lone surrogate, from a file name that is not UTF-8, becomes \udcXX: JSON's own escape.
        (new / METRICS).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        names = [metrics.name for metrics in evaluation.per_label]
        write_csv(
            new / PREDICTIONS, _prediction_rows(paths, outputs, names, thresholds, unreadable)
        )
        write_csv(new / PER_LABEL, _label_rows(evaluation))
        plot_curves(outputs.values, outputs.targets, evaluation, new / CURVES)
        plot_average_precision(evaluation, new / BARS)


def _label_rows(evaluation: Evaluation) -> Iterable[list[object]]:
    ends = [
        f"{name}_{end}"
        for name in ("average_precision", "precision", "recall")
        for end in ("low", "high")
    ]
    figures = ["average_precision", "precision", "recall", "f1", "threshold"]
    yield ["label", *figures, "support", "decided", "known", *ends]
    for m in evaluation.per_label:
        fractions = [_format(value) for value in (m.average_precision, m.precision, m.recall)]
        intervals = (m.average_precision_interval, m.precision_interval, m.recall_interval)
        yield [
            guard_cell(m.name),
            *fractions,
            _format(m.f1),
            f"{m.threshold:.12g}",
            m.support,
            m.decided,
            m.known,
            *(_format(end) for interval in intervals for end in _get_ends(interval)),
        ]


def _get_ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _prediction_rows(
    paths: Sequence[str],
    outputs: Outputs,
    names: Sequence[str],
    thresholds: NDArray[Any],
    unreadable: Mapping[str, str],
) -> Iterable[list[str]]:
    """For each label its probability, the decision, and the target, empty where it is unknown."""
    kinds = ("p", "decision", "target")
    yield ["path", "exact", "error", *(guard_cell(f"{k}_{name}") for name in names for k in kinds)]
    decisions = decide(outputs.values, thresholds)
    unknown = np.isnan(outputs.targets)
    exact = ((decisions == (outputs.targets == 1)) | unknown).all(1)
    probabilities = sigmoid(outputs.values)
    for row, path in enumerate(paths):
        cells = []
        for label in range(len(names)):
            target = "" if unknown[row, label] else str(int(outputs.targets[row, label]))
            decision = str(int(decisions[row, label]))
            cells += [f"{probabilities[row, label]:.6g}", decision, target]
        yield [guard_cell(path), str(int(exact[row])), "", *cells]
    for path, reason in unreadable.items():
        yield [guard_cell(path), "", guard_cell(reason), *[""] * (len(kinds) * len(names))]
