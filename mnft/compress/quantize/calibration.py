"""The training images that int8 is calibrated on, as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnft.config.schema import Config
from mnft.data.manifest import find_changes
from mnft.device.machine import Machine
from mnft.errors import CheckpointError, DataError
from mnft.evaluation.checkpoint import Opened
from mnft.evaluation.images import Selection, choose_evenly, find_images
from mnft.model.bundle import Bundle
from mnft.reporter import Reporter
from mnft.tasks import open_task
from mnft.training.eval_batches import EvalOptions, open_eval_batches


def find_calibration_images(
    opened: Opened, data: Path | None, count: int, reporter: Reporter
) -> Selection:
    """Training images, as many of each class.

    Args:
        opened: the model.
        data: a folder whose train images are taken; None takes the run's.
        count: images.
        reporter: told of progress.

    Raises:
        MnftError: no training images are known, or they have changed since the training.
    """
    if data is not None:
        found = find_images(opened, data, "train", reporter, judging=False)
    elif opened.manifest is None:
        raise CheckpointError(
            f"{opened.bundle.folder} does not lie in a run, so its training images are not known",
            hint="name a folder that has train and val in it: --data DIR",
        )
    else:
        manifest = opened.manifest
        found = Selection(manifest.root, "train", manifest.split("train"), {})
    if not found.samples:
        raise DataError(f"{found.root}: no training images to calibrate on")
    chosen = found.take(choose_evenly([sample.class_name for sample in found.samples], count))
    known = opened.manifest if data is None else None
    if known is not None and (changes := find_changes(known, chosen.samples)):
        raise DataError(
            f"{found.root}: {len(changes)} of {len(chosen.samples)} training images are not what "
            "they were when the run began:\n  " + "\n  ".join(changes[:10]),
            hint="if the folder moved, name it: --data DIR",
        )
    return chosen


def read_images(bundle: Bundle, images: Selection, config: Config) -> NDArray[Any]:
    """Decode images as evaluation does.

    Returns:
        (N, C, H, W) float32, normalised.
    """
    batches = open_eval_batches(
        images.root,
        images.samples,
        open_task(bundle.class_names).encode(images.samples),
        bundle.preprocessing,
        Machine(torch.device("cpu"), channels_last=False),
        config=config.eval,
        options=EvalOptions(workers=0),
    )
    return np.concatenate([np.ascontiguousarray(batch.images.numpy()) for batch in batches])
