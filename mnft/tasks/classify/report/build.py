"""The report of a classifier: the verdict, and the panels in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.classify.report.confidence import build_confidence
from mnft.tasks.classify.report.images import read_images
from mnft.tasks.classify.report.mistakes import build_confusion, build_mistakes
from mnft.tasks.panels import (
    Cell,
    EvaluationFiles,
    Panel,
    Table,
    TaskReport,
    Verdict,
    list_shown_groups,
)
from mnft.text import count

_FEW_OF_A_CLASS = 10


def build_report(found: EvaluationFiles) -> TaskReport:
    """Build what a report says of an evaluation.

    Raises:
        CheckpointError: a file of the evaluation is missing or damaged.
    """
    images = read_images(found.folder, found.labels)
    metrics = found.metrics
    mistakes = build_mistakes(images, found.labels, found.limit)
    return TaskReport(
        verdict=_judge(metrics),
        panels=[
            mistakes,
            build_confusion(images, found.labels, list_shown_groups(mistakes)),
            _build_classes(metrics["per_class"]),
            build_confidence(images, metrics),
        ],
        pipeline_tag="image-classification",
        hub_metrics={"accuracy": metrics["accuracy"], "f1": metrics["macro"]["f1"]},
    )


def _judge(metrics: Mapping[str, Any]) -> Verdict:
    n, accuracy = metrics["num_images"], metrics["accuracy"]
    low, high = metrics["accuracy_interval"]["low"], metrics["accuracy_interval"]["high"]
    per_class = metrics["per_class"]
    largest = max(per_class, key=lambda row: row["support"])
    majority = largest["support"] / n
    beside = {
        "images": f"{n:,}",
        f"always “{largest['name']}”": f"{majority:.1%}",
        "macro F1": f"{metrics['macro']['f1']:.3f}",
    }
    if metrics.get("top5_accuracy") is not None:
        beside["among the first five"] = f"{metrics['top5_accuracy']:.1%}"
    warnings = []
    empty = [row["name"] for row in per_class if not row["support"]]
    few = [row["name"] for row in per_class if 0 < row["support"] < _FEW_OF_A_CLASS]
    if empty:
        warnings.append(
            f"{count(len(empty), 'class', 'classes')} without an image here, so nothing is known "
            f"of {_name(empty)}"
        )
    if few:
        warnings.append(
            f"fewer than {_FEW_OF_A_CLASS} images of {count(len(few), 'class', 'classes')} "
            f"({_name(few)}): the figures of such a class are mostly chance"
        )
    if low <= majority:
        warnings.append(
            f"not surely better than always answering “{largest['name']}”, which is right for "
            f"{majority:.1%}"
        )
    return Verdict(
        figure=f"{accuracy:.1%}",
        title="accuracy",
        low=f"{low:.1%}",
        high=f"{high:.1%}",
        sentence=f"Of 100 new images like these the model names about {100 * accuracy:.0f} right "
        f"({100 * low:.0f} to {100 * high:.0f}, with 95% confidence).",
        beside=beside,
        warnings=warnings,
        width=high - low,
    )


def _name(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(f"“{name}”" for name in names[:limit]) + more


def _build_classes(per_class: Sequence[Mapping[str, Any]]) -> Panel:
    rows = []
    for row in per_class:
        hits = round(row["recall"] * row["support"])
        cells = [
            Cell(row["name"], link=None),
            Cell(f"{row['support']:,}", row["support"]),
            _rate(hits, row["support"], row["recall"]),
            _rate(hits, row["predicted"], row["precision"]),
            Cell(f"{row['f1']:.3f}", row["f1"]),
        ]
        rows.append(cells)
    lead = (
        "Recall: of the images of a class, the fraction that the model names so. Precision: of "
        "the images that it names so, the fraction that is. With 95% Wilson intervals, which are "
        "wide where there are few images."
    )
    headings = ["class", "images", "recall (95%)", "precision (95%)", "F1"]
    worst = sorted(rows, key=lambda cells: cells[4].value or 0.0)
    title = f"{count(len(rows), 'class', 'classes')}, lowest F1 first"
    table = Table(title, headings, worst, sortable=True, in_card=True)
    return Panel("classes", "Classes", lead, [table])


def _rate(hits: int, total: int, value: float) -> Cell:
    if not total:
        return Cell("–", -1.0)
    low, high = compute_wilson_interval(hits, total)
    text = f"{value:.1%} ({100 * low:.0f} to {100 * high:.0f})"
    return Cell(text, value, bar=value, low=low, high=high)
