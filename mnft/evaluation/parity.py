"""Parity of two models on the same images: how far their outputs differ, and the limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from mnft.tasks.base import Outputs
from mnft.tasks.classify.metrics import softmax
from mnft.text import count
from mnft.training.eval_batches import EvalOptions

# Rounding was seen to move a logit by 1e-5 in fp32.
LARGE_DIFFERENCE = 0.01
DIFFERENT = 20  # positions of differing images that are kept
_FEW_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Parity:
    """An exported file against the trained model.

    Attributes:
        num_images: number of images that were compared.
        agreement: fraction of the images on which both name the same class.
        accuracy_before: accuracy of the trained model on these images, in [0, 1].
        accuracy_after: accuracy of the file.
        largest_difference: largest difference of a logit, or of a probability if the file outputs
            those.
        mean_difference: mean difference over all images and classes.
        disagreements: positions of the first images on which the two differ.
        of: what the differences are computed of, "logits" or "probabilities".
    """

    num_images: int
    agreement: float
    accuracy_before: float
    accuracy_after: float
    largest_difference: float
    mean_difference: float
    disagreements: tuple[int, ...]
    of: str

    @property
    def accuracy_drop(self) -> float:
        """Accuracy that the file loses; negative where it is better, by chance."""
        return self.accuracy_before - self.accuracy_after

    def describe(self, images: ImageSet, **more: Any) -> dict[str, Any]:
        """What parity.json says of a file that passed.

        Args:
            images: the images that were compared, which the positions refer to.
            more: entries before the figures.
        """
        where = {"data": str(images.root), "split": images.split}
        figures = asdict(self) | {"accuracy_drop": self.accuracy_drop}
        figures["disagreements"] = [images.samples[i].path for i in self.disagreements]
        return {"checked": True, "passed": True, **where, **more, **figures}


def compute_parity(reference: Outputs, exported: Outputs, *, probabilities: bool) -> Parity:
    """Compare outputs for the same images.

    Args:
        reference: outputs of the trained model.
        exported: outputs of the file.
        probabilities: whether the file outputs probabilities; its `logits` are their logarithms.

    Raises:
        ValueError: the outputs are of different images, or of none.
    """
    if not len(reference.positions) or not np.array_equal(reference.positions, exported.positions):
        raise ValueError("the outputs are not of the same images")
    before, after = reference.logits.argmax(1), exported.logits.argmax(1)
    ours, theirs = reference.logits, exported.logits
    if probabilities:
        # Not the softmax of theirs, which would hide probabilities that do not add up to 1.
        ours, theirs = softmax(ours), np.exp(theirs)
    difference = np.abs(ours.astype(np.float64) - theirs)
    differing = np.flatnonzero(before != after)
    return Parity(
        num_images=len(before),
        agreement=float((before == after).mean()),
        accuracy_before=float((before == reference.targets).mean()),
        accuracy_after=float((after == exported.targets).mean()),
        # A NaN among the logits makes this NaN, which `list_failures` refuses.
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        disagreements=tuple(int(reference.positions[i]) for i in differing[:DIFFERENT]),
        of="probabilities" if probabilities else "logits",
    )


def list_failures(parity: Parity, gates: ExportConfig) -> list[str]:
    """List the reasons why a file must not be kept; none if it passes."""
    failures = []
    if not np.isfinite(parity.largest_difference):
        failures.append("it gives values that are not finite")
    if parity.agreement < gates.min_agreement:
        failures.append(
            f"it names the same class on {parity.agreement:.2%} of {parity.num_images} images, "
            f"expected at least {gates.min_agreement:.2%} (export.min_agreement)"
        )
    # Accuracies are fractions of whole images: the rounding of their difference must not decide.
    if parity.accuracy_drop > gates.max_accuracy_drop + 1e-9:
        failures.append(
            f"its accuracy on them is {parity.accuracy_after:.2%}, {parity.accuracy_drop:.2%} "
            f"below the trained model's {parity.accuracy_before:.2%}, expected at most "
            f"{gates.max_accuracy_drop:.2%} below (export.max_accuracy_drop)"
        )
    return failures


def check_gates(parity: Parity, gates: ExportConfig, what: str) -> None:
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
    if split is None and (data is None or "val" in readers.read(data).splits):
        split = "val"
    chosen = load_image_set(opened, data, split, reporter, limit=config.export.images)
    if len(chosen.samples) < _FEW_IMAGES:
        reporter.warn(
            f"only {count(len(chosen.samples), 'image')} to compare on; at least {_FEW_IMAGES} say "
            "more"
        )
    return chosen


def compare(
    opened: Checkpoint, folder: Path, images: ImageSet, config: Config, reporter: Reporter
) -> Parity:
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
    return compute_parity(reference, outputs, probabilities=read_artifact(folder).embedded)


def describe_parity(
    parity: Parity | None, images: ImageSet | None, fmt: Format, gates: ExportConfig
) -> dict[str, Any]:
    """What parity.json says of a file that is kept."""
    if parity is None or images is None:
        reason = f"{fmt.title} files cannot be run on this system"
        return {"checked": False, "passed": None, "reason": reason}
    limits = gates.model_dump(include={"min_agreement", "max_accuracy_drop"})
    return {**parity.describe(images), "gates": limits}
