"""The images that int8 quantization calibrates on and is judged by, and their arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnft.config.schema import Config
from mnft.data.manifest import list_changes
from mnft.device.machine import Machine
from mnft.errors import CheckpointError, DataError
from mnft.evaluation.checkpoint import Checkpoint
from mnft.evaluation.images import ImageSet, load_image_set, per_class
from mnft.model.bundle import Bundle
from mnft.reporter import SILENT, Reporter
from mnft.tasks import open_task
from mnft.training.eval_batches import EvalOptions, open_eval_batches


@dataclass(frozen=True, slots=True)
class QuantizationImages:
    """The images of a quantization.

    Attributes:
        calibration: training images, from which the ranges of activations come.
        val: the images on which the int8 file must be as accurate as the float file.
        test: images that are only reported on, once at the end; None where none are known.
    """

    calibration: ImageSet
    val: ImageSet
    test: ImageSet | None


def choose_images(
    opened: Checkpoint, data: Path | None, num_calibration: int, reporter: Reporter
) -> QuantizationImages:
    """Choose images from the run's split, or from the user's folder, which has no test images.

    Args:
        opened: the model.
        data: a folder with train and val images; None takes the run's images.
        num_calibration: the number of training images to calibrate on.
        reporter: receives progress.

    Raises:
        MnftError: training or val images are unknown, or changed since the training.
    """
    calibration = choose_calibration_images(opened, data, num_calibration, reporter)
    val = load_image_set(opened, data, "val", reporter)
    test = None
    if data is None and opened.manifest is not None and opened.manifest.split("test"):
        test = load_image_set(opened, None, "test", reporter)
    return QuantizationImages(calibration, val, test)


def choose_calibration_images(
    opened: Checkpoint, data: Path | None, count: int, reporter: Reporter = SILENT
) -> ImageSet:
    """Choose training images, equally many of each class.

    Args:
        opened: the model.
        data: a folder with train images; None takes the run's images.
        count: the number of images.
        reporter: receives progress.

    Raises:
        MnftError: no training images are known, or they changed since the training.
    """
    manifest = opened.manifest
    if data is not None:
        images = load_image_set(opened, data, "train", reporter, judging=False)
    elif manifest is not None:
        images = ImageSet(manifest.root, "train", manifest.split("train"), {}, manifest.root)
    else:
        raise CheckpointError(
            f"{opened.bundle.folder} does not lie in a run, so its training images are not known",
            hint="name a folder that has train and val in it: --data DIR",
        )
    if not images.samples:
        raise DataError(f"{images.root}: no training images to calibrate on")
    chosen = images.take(per_class([sample.label for sample in images.samples], count))
    # A folder that the user names need not hold the images of the run.
    if data is None and manifest and (changes := list_changes(manifest, chosen.samples)):
        raise DataError(
            f"{images.root}: {len(changes)} of {len(chosen.samples)} training images are not what "
            "they were when the run began:\n  " + "\n  ".join(changes[:10]),
            hint="if the folder moved, name it: --data DIR",
        )
    return chosen


def read_images(bundle: Bundle, images: ImageSet, config: Config) -> NDArray[Any]:
    """Decode images as evaluation does.

    Returns:
        (N, C, H, W) float32, normalised.
    """
    batches = open_eval_batches(
        images.root,
        images.samples,
        open_task(bundle.labels, bundle.task, bundle.settings).encode(images.samples),
        bundle.preprocessing,
        Machine(torch.device("cpu"), channels_last=False),
        config=config.eval,
        options=EvalOptions(workers=0),
    )
    return np.concatenate([np.ascontiguousarray(batch.images.numpy()) for batch in batches])
