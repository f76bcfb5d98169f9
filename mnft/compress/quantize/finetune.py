"""Quantization-aware fine-tuning of a run's model on its training images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnft.compress.quantize.qat import adapt_config, fine_tune
from mnft.config.schema import Config
from mnft.device.machine import open_machine
from mnft.errors import CheckpointError
from mnft.evaluation.checkpoint import Opened
from mnft.exports.artifact import Artifact
from mnft.exports.formats import check_installed
from mnft.host import find_missing
from mnft.reporter import Reporter
from mnft.training.build import build_training
from mnft.training.epoch.loop import LoopResult

_PACKAGES = ("torchao",)


def hint_at_tuning(config: Config) -> str:
    """What to install where fine-tuning was left out for want of it; else empty."""
    if config.quantize.qat == "auto" and find_missing(_PACKAGES):
        return "quantization-aware fine-tuning: pip install 'mnft[qat]'; "
    return ""


def build_tuner(
    opened: Opened,
    config: Config,
    images: np.ndarray[Any, np.dtype[Any]],
    artifact: Artifact,
    reporter: Reporter,
) -> Callable[[Path], None] | None:
    """What writes an ONNX file by fine-tuning; None where it shall not or cannot.

    Args:
        opened: the trained model.
        config: of its run.
        images: (N, C, H, W) float32, normalised, for the first ranges.
        artifact: what an ONNX file of the model takes and gives.
        reporter: told of progress and epochs.

    Raises:
        ExportError: it is asked for, but torchao is not installed.
        CheckpointError: it is asked for, but the model lies in no run.
    """
    settings = config.quantize
    if settings.qat == "never":
        return None
    if settings.qat == "always":
        check_installed(_PACKAGES, "qat", "quantization-aware fine-tuning")
        if opened.manifest is None:
            raise CheckpointError(
                f"{opened.bundle.folder} does not lie in a run, so there is nothing to fine-tune "
                "it on",
                hint="name a run, or leave it out: --set quantize.qat=never",
            )
    if opened.manifest is None or settings.method == "per_tensor" or find_missing(_PACKAGES):
        return None
    manifest = opened.manifest

    def write(path: Path) -> None:
        tuned = adapt_config(config, opened.bundle)
        training = build_training(
            tuned,
            manifest,
            open_machine("cpu"),
            reporter=reporter,
        )

        def show(epoch: int, result: LoopResult) -> None:
            loss, accuracy = result.figures.values()
            reporter.note(
                f"         epoch {epoch}/{tuned.train.epochs}  loss {loss:.4f}  acc "
                f"{accuracy:.2%}  {result.seconds:.1f} s"
            )

        keep = settings.keep_float or ()
        fine_tune(training, images, artifact, path, keep_float=keep, on_epoch=show)

    return write
