"""What a report shows of a multi-label classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnft.tasks import open_task
from mnft.tasks.outputs import Outputs
from mnft.tasks.panels import Chart, EvaluationFiles, Gallery, Table

LABELS = ("cat", "=dog", "<b>")


@pytest.fixture
def found(tmp_path: Path) -> Any:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (60, 3)).astype(np.float32)
    values = (2 * targets - 1 + rng.normal(0, 1.5, (60, 3))).astype(np.float32)
    targets[:5, 1] = np.nan
    task = open_task(LABELS, "multilabel")
    outputs = Outputs(np.arange(60), values, targets, {})
    task.write_evaluation(
        tmp_path / "eval",
        task.evaluate(outputs),
        outputs,
        [f"{i}.jpg" for i in range(60)],
        header={"split": "test"},
        unreadable={"x.jpg": "cut off"},
        root=tmp_path,
    )
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text(encoding="utf-8"))
    files = EvaluationFiles(tmp_path / "eval", metrics, LABELS, 20)
    return task.build_report(files), metrics, values, targets


def test_figures_are_those_of_metrics_json(found: Any) -> None:
    report, metrics, _, _ = found
    assert report.verdict.figure == f"{metrics['map']:.1%}"
    rows = next(b for b in report.panels[1].blocks if isinstance(b, Table)).rows
    by_name = {entry["name"]: entry for entry in metrics["per_label"]}
    assert {row[0].text for row in rows} == set(LABELS)
    for row in rows:
        assert row[2].value == by_name[row[0].text]["average_precision"]
        assert row[3].value == by_name[row[0].text]["recall"]


def test_each_label_and_kind_of_mistake_is_shown(found: Any) -> None:
    report, _, values, targets = found
    gallery = next(b for b in report.panels[0].blocks if isinstance(b, Gallery))
    decided = values >= 0
    known = ~np.isnan(targets)
    missed, surplus = known & (targets == 1) & ~decided, known & (targets == 0) & decided
    assert gallery.total == missed.sum() + surplus.sum() > len(gallery.pictures) == 20
    assert len({p.group for p in gallery.pictures}) == len(gallery.groups) == 6
    for k in range(3):
        assert gallery.groups[f"{k}-missed"][1] == missed[:, k].sum()
        assert gallery.groups[f"{k}-surplus"][1] == surplus[:, k].sum()
    sure = [p.sure for p in gallery.pictures]
    assert sure == sorted(sure, reverse=True)


def test_what_is_not_known_counts_nowhere(found: Any) -> None:
    report, _, _, targets = found
    chart = next(b for b in report.panels[2].blocks if isinstance(b, Chart))
    total = sum(int(point.name.split()[2]) for point in chart.series[0].points)
    assert total == int((~np.isnan(targets)).sum())


def test_explained_outputs_are_the_labels_that_the_image_has() -> None:
    answers = open_task(LABELS, "multilabel").build_answers(1)
    assert answers.choose_explained(np.float32([0.5, -1, 2])) == [2, 0]
    assert answers.choose_explained(np.float32([-3, -1, -2])) == [1]
