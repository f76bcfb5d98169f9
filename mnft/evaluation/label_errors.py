"""Likely wrong labels in a folder, found by a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mnft.data.check.findings import Finding
from mnft.data.check.report import Checked
from mnft.data.lineage import shorten
from mnft.data.manifest import Sample
from mnft.device.machine import open_machine
from mnft.device.select import keep_freed_memory
from mnft.errors import DataError, ModelError
from mnft.evaluation.checkpoint import open_trained
from mnft.model.linear_head import find_linear_head, has_linear_head
from mnft.reporter import Reporter
from mnft.tasks import open_task
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.head.features import compute_features

_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """What was found, and how the images were judged.

    Attributes:
        findings: a note for each image whose label is likely wrong.
        by_model: number of images that are new to the model, which judged them itself.
        crosswise: number of images that it may have learned from; cross-validation judged them.
        unknown_class: number of images with labels that the model does not know; none judged them.
    """

    findings: list[Finding]
    by_model: int
    crosswise: int
    unknown_class: int


def check_labels(checked: Checked, checkpoint: Path, reporter: Reporter) -> LabelCheck:
    """Find images whose label the model confidently contradicts.

    Images that the run did not train on are judged by the model itself. Images that it trained on,
    and all if that is not known, are judged by cross-validation: classifiers on the model's
    features, each fitted without the images that it judges.

    Raises:
        MnftError: there is no model, its outputs are not one linear layer on features, or none of
            its classes is in the folder.
    """
    keep_freed_memory()
    opened = open_trained(checkpoint)
    bundle = opened.bundle
    if not has_linear_head(bundle.model, bundle.preprocessing.input_size):
        raise ModelError(
            f"{checkpoint}: its outputs are not one linear layer on features, which wrong labels "
            "are found by"
        )
    images = [i for i in checked.images if checked.inspections[i.path].problem is None]
    rules = checked.rules
    if bundle.task != rules.task:
        raise ModelError(
            f"{checkpoint} is a model of task: {bundle.task}, the images are for {rules.task}"
        )
    known = [i for i in images if set(rules.parse(i.label)) <= set(bundle.labels)]
    if not known:
        raise DataError(
            f"{checked.report.root}: none of its {rules.plural} is among those of {checkpoint}",
            hint=f"the model knows {', '.join(bundle.labels[:10])}",
        )
    contents = [checked.inspections[image.path].sha256 for image in known]
    samples = [
        Sample(image.path, image.label, image.split or "all", content, image.group)
        for image, content in zip(known, contents, strict=True)
    ]
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    machine = open_machine()
    batches = open_eval_batches(
        checked.report.root,
        samples,
        task.encode(samples),
        bundle.preprocessing,
        machine,
        options=EvalOptions(_BATCH_SIZE),
    )
    with reporter.count("judging labels", len(samples)) as advance:
        features = compute_features(
            machine.place(bundle.model), batches, machine, dtype=torch.float32, on_images=advance
        )
    # What the model learned from it cannot judge; without a record it may be any image.
    trained = np.ones(len(known), dtype=bool)
    if opened.manifest is not None or "trained_on" in bundle.record:
        seen = opened.trained_on
        trained = np.array([shorten(content) in seen for content in contents], dtype=bool)
    head = find_linear_head(bundle.model)
    assert head is not None
    with torch.inference_mode():
        values = head(features.values.to(head.weight.device)).float().cpu().numpy()
    findings = []
    groups = [image.group or content for image, content in zip(known, contents, strict=True)]
    for error in task.find_label_errors(features, values, trained, groups):
        path = known[error.position].path
        findings.append(Finding("label", False, error.what, (path,), look_at=(path,)))
    count = int(trained.sum())
    return LabelCheck(findings, len(known) - count, count, len(images) - len(known))


def describe(found: LabelCheck) -> Mapping[str, int]:
    """How many images were judged in which way, and how many were found, as --json shows it."""
    return {
        "by_model": found.by_model,
        "crosswise": found.crosswise,
        "unknown_class": found.unknown_class,
        "found": len(found.findings),
    }
