"""Parity of two models on the same images: how far their outputs differ, and the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mnft.config.data import DataConfig
from mnft.config.edge import ExportConfig
from mnft.config.schema import Config
from mnft.data import readers
from mnft.errors import GateError
from mnft.evaluation.checkpoint import Checkpoint
from mnft.evaluation.images import ImageSet, load_image_set
from mnft.evaluation.outputs import compute_image_outputs
from mnft.exports.artifact import read_artifact
from mnft.exports.formats import Format
from mnft.exports.model import load_exported
from mnft.reporter import Reporter
from mnft.tasks import open_task
from mnft.tasks.outputs import Agreement
from mnft.text import count
from mnft.training.eval_batches import EvalOptions

# Rounding was seen to move a logit by 1e-5 in fp32.
LARGE_DIFFERENCE = 0.01
_FEW_IMAGES = 256


def describe_agreement(parity: Agreement, images: ImageSet, **more: Any) -> dict[str, Any]:
    """What parity.json says of a file that passed.

    Args:
        parity: the comparison of the file with the trained model.
        images: the images that were compared, which the positions refer to.
        more: entries before the figures.
    """
    return {
        "checked": True,
        "passed": True,
        "data": str(images.root),
        "split": images.split,
        **more,
        "num_images": parity.num_images,
        "agreement": parity.agreement,
        f"{parity.figure}_before": parity.before.value,
        f"{parity.figure}_after": parity.after.value,
        "largest_difference": parity.largest_difference,
        "mean_difference": parity.mean_difference,
        "disagreements": [images.samples[i].path for i in parity.disagreements],
        "of": parity.of,
        f"{parity.figure}_drop": parity.drop,
    }


def list_failures(parity: Agreement, gates: ExportConfig) -> list[str]:
    """List the reasons why a file must not be kept; none if it passes."""
    failures = []
    if not np.isfinite(parity.largest_difference):
        failures.append("it gives values that are not finite")
    if parity.agreement < gates.min_agreement:
        failures.append(
            f"it gives the same answer for {parity.agreement:.2%} of {parity.num_images} images, "
            f"expected at least {gates.min_agreement:.2%} (export.min_agreement)"
        )
    # The figures are fractions of whole images: the rounding of their difference must not decide.
    if parity.drop > gates.max_accuracy_drop + 1e-9:
        failures.append(
            f"its {parity.title} on them is {parity.after.value:.2%}, {parity.drop:.2%} "
            f"below the trained model's {parity.before.value:.2%}, expected at most "
            f"{gates.max_accuracy_drop:.2%} below (export.max_accuracy_drop)"
        )
    return failures


def check_gates(parity: Agreement, gates: ExportConfig, what: str) -> None:
    """Refuse a file whose predictions differ too far from those of the trained model.

    Raises:
        GateError: the file misses a limit; the message names every one that it misses.
    """
    if failures := list_failures(parity, gates):
        raise GateError(
            f"{what} does not answer as the trained model does and was not kept: "
            + "; ".join(failures),
            hint="a tool-chain's fault or other preprocessing; looser gates: "
            "--set export.min_agreement=... --set export.max_accuracy_drop=...",
        )


def choose_comparison_images(
    opened: Checkpoint, data: Path | None, split: str | None, config: Config, reporter: Reporter
) -> ImageSet:
    """Choose at most `export.images` images of the val split or of a folder, evenly by class."""
    if split is None:
        given = None if data is None else readers.read(DataConfig(root=str(data))).splits
        split = "val" if given is None or "val" in given else None
    chosen = load_image_set(opened, data, split, reporter, limit=config.export.images)
    if len(chosen.samples) < _FEW_IMAGES:
        reporter.warn(
            f"only {count(len(chosen.samples), 'image')} to compare on; at least {_FEW_IMAGES} say "
            "more"
        )
    return chosen


def compare(
    opened: Checkpoint, folder: Path, images: ImageSet, config: Config, reporter: Reporter
) -> Agreement:
    """Compare an exported file, run as its folder describes it, with the trained model."""
    exported = load_exported(folder)
    settings = config.eval.model_copy(update={"precision": "fp32"})
    common: Any = {
        "device": "cpu",
        "options": EvalOptions(store=config.data.store),
        "reporter": reporter,
    }
    reference = compute_image_outputs(
        opened.bundle, images, settings, **common, what="trained model"
    )
    outputs = compute_image_outputs(exported, images, settings, **common, what="exported file")
    task = open_task(opened.bundle.labels, opened.bundle.task, opened.bundle.settings)
    return task.compare(reference, outputs, activated=read_artifact(folder).embedded)


def describe_parity(
    parity: Agreement | None, images: ImageSet | None, fmt: Format, gates: ExportConfig
) -> dict[str, Any]:
    """What parity.json says of a file that is kept."""
    if parity is None or images is None:
        reason = f"{fmt.title} files cannot be run on this system"
        return {"checked": False, "passed": None, "reason": reason}
    limits = gates.model_dump(include={"min_agreement", "max_accuracy_drop"})
    return {**describe_agreement(parity, images), "gates": limits}
