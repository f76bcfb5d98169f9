"""What a run has to report: the files that other commands left in it, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft.errors import CheckpointError
from mnft.evaluation.checkpoint import Checkpoint, open_trained
from mnft.evaluation.images import choose_split
from mnft.exports.artifact import PARITY, QUANTIZATION
from mnft.exports.artifact import RECORD as EXPORT
from mnft.runs.folder import read_log
from mnft.tasks import open_task
from mnft.tasks.base import Task
from mnft.tasks.outputs import METRICS
from mnft.tasks.panels import EvaluationFiles

CHECK = "check.json"  # what `mnft data check -o` writes
COMPARISON = "comparison"  # what `mnft compare -o` writes


@dataclass(frozen=True, slots=True)
class Export:
    """A folder below exports/: its name, and the content of its JSON files."""

    name: str
    record: Mapping[str, Any]
    parity: Mapping[str, Any]
    quantization: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """A run, and what was found in it.

    Attributes:
        opened: the run's best model.
        task: task of the model.
        split: the split that the report is about.
        evaluation: what `mnft eval` wrote for it; None where it did not.
        stale: why that evaluation may be of another model; "" where it is of this one.
        log: the events of log.jsonl.
        exports: what lies below exports/, by name.
        comparison: what `mnft compare` wrote into the run, or None.
        check: what `mnft data check` wrote into the run, or None.
    """

    opened: Checkpoint
    task: Task
    split: str
    evaluation: EvaluationFiles | None
    stale: str
    log: list[dict[str, Any]]
    exports: list[Export]
    comparison: Mapping[str, Any] | None
    check: Mapping[str, Any] | None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.opened.run.path


def read_sources(path: Path, split: str | None, limit: int) -> Sources:
    """Read what a run has to report.

    Args:
        path: a run.
        split: the split to report on; None takes that which `mnft eval` would.
        limit: largest number of pictures to show.

    Raises:
        CheckpointError: it is no run with a model, or a file in it is damaged.
    """
    opened = open_trained(path)
    if opened.manifest is None:
        raise CheckpointError(
            f"{path} does not lie in a run, so there is nothing to report of it",
            hint="name the folder that `mnft train` made",
        )
    bundle, run = opened.bundle, opened.run
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    split = split or choose_split(opened.manifest)
    evaluation, stale = None, ""
    for folder in (run.evaluation, run.path / f"{run.evaluation.name}-{split}"):
        metrics = read_json(folder / METRICS)
        if metrics is not None and metrics.get("split") == split:
            evaluation = EvaluationFiles(folder, metrics, bundle.labels, limit)
            stale = _find_stale(opened, folder, metrics)
            break
    exports = [
        Export(
            folder.name,
            record,
            read_json(folder / PARITY) or {},
            read_json(folder / QUANTIZATION) or {},
        )
        for folder in sorted((run.path / "exports").glob("*"))
        if (record := read_json(folder / EXPORT)) is not None
    ]
    return Sources(
        opened=opened,
        task=task,
        split=split,
        evaluation=evaluation,
        stale=stale,
        log=read_log(run),
        exports=exports,
        comparison=read_json(run.path / COMPARISON / f"{COMPARISON}.json"),
        check=read_json(run.path / CHECK),
    )


def _find_stale(opened: Checkpoint, folder: Path, metrics: Mapping[str, Any]) -> str:
    weights = opened.bundle.folder / "model.safetensors"
    if Path(str(metrics.get("checkpoint"))).name != opened.bundle.folder.name:
        return f"the evaluation is of {metrics.get('checkpoint')}"
    if (folder / METRICS).stat().st_mtime < weights.stat().st_mtime:
        return "the model was trained on after this evaluation"
    return ""


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged: expected a JSON object")
    return content
