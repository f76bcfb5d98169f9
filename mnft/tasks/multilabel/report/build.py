"""The report of a multi-label classifier: the verdict, and the panels in their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mnft.tasks.classify.report.confidence import draw_reliability
from mnft.tasks.multilabel.report.images import Decisions, read_decisions
from mnft.tasks.multilabel.report.mistakes import MISSED, SURPLUS, build_key, build_mistakes
from mnft.tasks.panels import (
    Cell,
    EvaluationFiles,
    Panel,
    Table,
    TaskReport,
    Text,
    Verdict,
    list_shown_groups,
)
from mnft.text import count

_FEW_OF_A_LABEL = 10


def build_report(found: EvaluationFiles) -> TaskReport:
    """Build what a report says of an evaluation.

    Raises:
        CheckpointError: a file of the evaluation is missing or damaged.
    """
    decisions = read_decisions(found.folder, found.labels)
    metrics = found.metrics
    mistakes = build_mistakes(decisions, found.labels, found.limit)
    return TaskReport(
        verdict=_judge(metrics),
        panels=[
            mistakes,
            _build_labels(metrics["per_label"], decisions, list_shown_groups(mistakes)),
            _build_confidence(decisions),
        ],
        pipeline_tag="image-classification",
        hub_metrics={"mAP": metrics["map"], "f1": metrics["macro_f1"]},
    )


def _judge(metrics: Mapping[str, Any]) -> Verdict:
    low, high = metrics["map_interval"]["low"], metrics["map_interval"]["high"]
    rows = metrics["per_label"]
    shares = [row["support"] / row["known"] for row in rows if row["average_precision"] is not None]
    chance = sum(shares) / max(1, len(shares))
    warnings = []
    if unmeasured := [row["name"] for row in rows if row["average_precision"] is None]:
        warnings.append(
            f"{count(len(unmeasured), 'label')} without images with it, or without it, so nothing "
            f"is known of {', '.join(unmeasured[:5])}"
        )
    if few := [row["name"] for row in rows if 0 < row["support"] < _FEW_OF_A_LABEL]:
        warnings.append(
            f"fewer than {_FEW_OF_A_LABEL} images with {', '.join(few[:5])}"
            f"{' and others' if len(few) > 5 else ''}: the figures of such a label are mostly "
            "chance"
        )
    if low <= chance:
        warnings.append("not surely better than chance")
    exact = metrics["exact_match"]
    return Verdict(
        figure=f"{metrics['map']:.1%}",
        title="mean average precision",
        low=f"{low:.1%}",
        high=f"{high:.1%}",
        sentence=f"Of 100 new images like these about {100 * exact:.0f} get exactly their labels, "
        "no more and no fewer.",
        beside={
            "images": f"{metrics['num_images']:,}",
            "by chance": f"{chance:.1%}",
            "all labels right": f"{exact:.1%}",
            "macro F1": f"{metrics['macro_f1']:.3f}",
            "micro F1": f"{metrics['micro_f1']:.3f}",
        },
        warnings=warnings,
        width=high - low,
    )


def _build_labels(
    per_label: Sequence[Mapping[str, Any]], decisions: Decisions, shown: Collection[str]
) -> Panel:
    rows = []
    for k, row in enumerate(per_label):
        missed, surplus = int(decisions.missed[:, k].sum()), int(decisions.surplus[:, k].sum())
        average = row["average_precision"]
        rows.append(
            [
                Cell(row["name"]),
                Cell(f"{row['support']:,}", row["support"]),
                _rate(average, row["average_precision_interval"]),
                _rate(row["recall"], row["recall_interval"]),
                _rate(row["precision"], row["precision_interval"]),
                Cell(f"{row['f1']:.3f}", row["f1"]),
                Cell(f"{row['threshold']:.3g}", row["threshold"]),
                _lead_to(missed, build_key(k, MISSED), f"{row['name']} missed", shown),
                _lead_to(
                    surplus, build_key(k, SURPLUS), f"{row['name']} seen where it is not", shown
                ),
            ]
        )
    headings = [
        "label",
        "images",
        "AP (95%)",
        "recall (95%)",
        "precision (95%)",
        "F1",
        "threshold",
        "missed",
        "surplus",
    ]
    lead = (
        "Average precision (AP) needs no threshold; the other figures use the threshold that was "
        "chosen on val. Missed: the label is there and was not seen; surplus: the other way round. "
        "Their numbers lead to the images."
    )
    rows.sort(key=lambda cells: cells[2].value or 0.0)
    title = f"{count(len(rows), 'label')}, lowest AP first"
    return Panel(
        "labels", "Labels", lead, [Table(title, headings, rows, sortable=True, in_card=True)]
    )


def _rate(value: float | None, interval: Mapping[str, float] | None) -> Cell:
    if value is None or interval is None:
        return Cell("–", -1.0)
    low, high = interval["low"], interval["high"]
    text = f"{value:.1%} ({100 * low:.0f} to {100 * high:.0f})"
    return Cell(text, value, bar=value, low=low, high=high)


def _lead_to(number: int, key: str, what: str, shown: Collection[str]) -> Cell:
    label = f"{what}: {count(number, 'image')}"
    return Cell(str(number), number, link=key if key in shown else None, label=label)


def _build_confidence(decisions: Decisions) -> Panel:
    known = decisions.known
    present = decisions.present[known]
    probabilities = decisions.probabilities[known]
    lead = (
        f"A probability of 30% should mean that the label is there in 30 of 100 cases. Here are "
        f"all {len(present):,} pairs of an image and a label."
    )
    chart = draw_reliability(
        probabilities,
        present,
        title="Reliability: how often a label of one probability is there, with 95% intervals",
        x="probability of the label",
        what="there",
    )
    mean = float(np.mean(probabilities)) if len(present) else 0.0
    share = float(np.mean(present)) if len(present) else 0.0
    note = Text(f"On average the model gives {mean:.1%}, and {share:.1%} of the labels are there.")
    return Panel("confidence", "Confidence", lead, [chart, note])
