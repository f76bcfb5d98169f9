"""The verdict: what the task says, and what every evaluation must be seen against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from shlex import quote
from typing import Any

from mnft.report.panels.exports import list_export_warnings
from mnft.report.panels.training import list_epochs
from mnft.report.sources import Sources
from mnft.tasks.panels import Text, Verdict
from mnft.text import count

# Wider than this, an interval decides little: 400 images at 90% have 6 points.
_WIDE = 0.10
_LEAKS = {"leak", "near_leak", "group_leak"}  # kinds of findings


def complete_verdict(verdict: Verdict, sources: Sources, metrics: Mapping[str, Any]) -> Verdict:
    """Add what all tasks share: the head by itself, leaks, few images, files that are not right.

    Args:
        verdict: what the task says.
        sources: the run.
        metrics: the content of metrics.json.
    """
    figure, title = f"val_{sources.task.figure}", sources.task.title
    beside = {}
    epochs = list_epochs(sources.log)
    head = next((e for e in epochs if e.get("stage") == "head" and figure in e), None)
    best = next((e for e in reversed(epochs) if e.get("is_best") and figure in e), None)
    if best:
        beside[f"{title} on val"] = f"{best[figure]:.1%}"
    if head and best and head is not best:
        beside["head by itself, on val"] = f"{head[figure]:.1%}"
    warnings = []
    if sources.stale:
        warnings.append(f"{sources.stale}: evaluate again: mnft eval {_run(sources)}")
    if seen := metrics.get("images_trained_on"):
        warnings.append(
            f"a leak: the model was trained on {seen:,} of these images, "
            "so its figures are too good"
        )
    if sources.split == "val":
        warnings.append("these are val images, which chose the epoch: new images give a bit less")
    if sources.split == "train":
        warnings.append("these are training images: the figures say nothing of new ones")
    if verdict.width > _WIDE:
        warnings.append(
            f"{metrics['num_images']:,} images are too few for a narrow figure: the interval is "
            f"{100 * verdict.width:.0f} points wide"
        )
    if bad := metrics.get("unreadable"):
        warnings.append(f"{count(len(bad), 'file')} could not be read and did not count")
    if sources.check and (problems := sources.check.get("problems")):
        warnings.append(f"mnft data check found {count(problems, 'problem')}: see Data")
    findings = sources.check["findings"] if sources.check else []
    if leaks := sum(finding["kind"] in _LEAKS for finding in findings):
        warnings.append(
            f"{count(leaks, 'pair or group', 'pairs or groups')} of images that look alike, or are "
            "the same, lie in two splits: see Data"
        )
    if sources.check is None:
        warnings.append("nobody looked for leaks, near copies or damage in the images: see Data")
    sha256 = sources.opened.bundle.record.get("sha256")
    warnings += list_export_warnings(sources.exports, sha256)
    return replace(
        verdict,
        beside={**verdict.beside, **beside},
        warnings=[*warnings, *verdict.warnings],
    )


def describe_missing(sources: Sources) -> Text:
    """Say that the model was not evaluated on the split, and which command does it."""
    option = f" --split {sources.split}"
    text = f"The model was not evaluated on {sources.split}. Run:"
    return Text(text, "missing", f"mnft eval {_run(sources)}{option}")


def _run(sources: Sources) -> str:
    return quote(str(sources.folder))
