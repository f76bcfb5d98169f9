"""Run a model over evaluation batches; every image counts once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from mnft.config.evaluation import EvalConfig
from mnft.data.batches.batch import Batch
from mnft.data.decode import BadImage
from mnft.device.machine import Machine
from mnft.device.memory import free_memory
from mnft.device.ranks.distributed import gather
from mnft.device.ranks.rows import Rows
from mnft.device.select import autocast
from mnft.failures import is_out_of_memory
from mnft.model.freeze import evaluating
from mnft.preprocessing import Preprocessing
from mnft.tasks.outputs import Outputs

_log = logging.getLogger(__name__)
# What `eval.batch_size: auto` means: images in a batch, the most on a GPU, and its most pixels.
_EVAL_IMAGES = 64
_EVAL_IMAGES_ON_GPU = 256
_EVAL_PIXELS_ON_GPU = 256 * 224 * 224
# Pixels that go through a model at once in evaluation on the CPU.
_PIXELS = 32 * 224 * 224


def run_model(
    model: nn.Module,
    batches: Iterable[Batch],
    machine: Machine,
    on_batch: Callable[[Batch, Tensor], None],
    *,
    flip: bool = False,
) -> None:
    """Evaluate a model on batches, in evaluation mode and in the machine's `eval_dtype`.

    Where memory runs out, the batch is computed again in twice as many parts, and so are all that
    follow: without gradients and with BatchNorm's own statistics the parts do not matter.

    Args:
        model: the model, on the machine's device; it is given back in the mode it came in.
        batches: batches of this process.
        machine: where to compute.
        on_batch: called with each batch and its outputs, (B, K) float32 on the device.
        flip: whether to average the outputs of each image and its mirror image (test-time
            augmentation).
    """

    def compute(images: Tensor) -> Tensor:
        with autocast(machine.device, machine.eval_dtype):
            outputs: Tensor = model(images)
            if flip:
                outputs = (outputs + model(images.flip(-1))) / 2
        return outputs.float()

    with torch.inference_mode(), evaluating(model):
        compute_in_parts = InParts(compute)
        for batch in batches:
            on_batch(batch, compute_in_parts(batch.images) if len(batch.images) else batch.images)


def compute_outputs(
    model: nn.Module,
    batches: Iterable[Batch],
    machine: Machine,
    *,
    num_outputs: int,
    flip: bool = False,
    on_images: Callable[[int], None] | None = None,
) -> Outputs:
    """Collect the outputs of a model for all images of all processes.

    Args:
        model: the model, on the machine's device; it is given back in the mode it came in.
        batches: batches of this process.
        machine: where to compute.
        num_outputs: K, the width of the outputs.
        flip: whether to average each image with its mirror image.
        on_images: called with the number of images of each batch that is done.
    """
    rows = Rows(machine.ranks)
    bad: dict[int, BadImage] = {}

    def keep(batch: Batch, outputs: Tensor) -> None:
        bad.update(batch.bad)
        if len(batch.images):
            rows.add(batch.positions, outputs, batch.targets)
        if on_images:
            on_images(len(batch.positions) + len(batch.bad))

    run_model(model, batches, machine, keep, flip=flip)
    collected = rows.collect()
    for theirs in gather(machine.ranks, bad):
        bad |= theirs
    if collected is None:
        empty = np.empty(0, dtype=np.int64)
        return Outputs(empty, np.empty((0, num_outputs), dtype=np.float32), empty, bad)
    positions, values, targets = (column.numpy() for column in collected)
    return Outputs(positions, values, targets, bad)


class InParts:
    """Computes batches in as few parts as the memory allows.

    Args:
        compute: (B, C, H, W) images to (B, D) numbers.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._parts = 1

    def __call__(self, images: Tensor) -> Tensor:
        """Compute a whole batch, (B, D).

        Raises:
            RuntimeError: there is too little memory for a single image.
        """
        while True:
            try:
                parts = images.tensor_split(max(1, min(self._parts, len(images))))
                computed = [
                    self._compute(piece) for part in parts for piece in split_for_evaluation(part)
                ]
                return computed[0] if len(computed) == 1 else torch.cat(computed)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self._parts >= len(images):
                    raise
            # Outside `except`, because the error keeps the tensors of the attempt alive.
            self._parts *= 2
            _log.warning("out of memory: batches are now evaluated in %d parts", self._parts)
            free_memory()


def split_for_evaluation(images: Tensor) -> tuple[Tensor, ...]:
    """Cut images into the parts that go through a model at once.

    On the CPU a part has as many pixels as 32 images of 224 pixels: larger parts are no faster, and
    their fp32 activations come on top of what the training keeps. A GPU takes all at once.

    Args:
        images: (B, C, H, W) float.
    """
    if images.device.type != "cpu":
        return (images,)
    height, width = images.shape[-2:]
    return torch.split(images, max(1, _PIXELS // (height * width)))


def choose_eval_batch_size(
    config: EvalConfig, preprocessing: Preprocessing, *, stored_for: torch.device | None = None
) -> int:
    """Choose the size of evaluation batches: `eval.batch_size`, or what `auto` stands for.

    A GPU that need not wait for images to be decoded takes more of them at once, as long as they
    are not large.

    Args:
        config: the `eval` section.
        preprocessing: preprocessing of the model's input.
        stored_for: the device that evaluates stored images; None where images are decoded.
    """
    if config.batch_size != "auto":
        return config.batch_size
    if stored_for is None or stored_for.type != "cuda":
        return _EVAL_IMAGES
    pixels = math.prod(preprocessing.input_size[1:])
    return max(_EVAL_IMAGES, min(_EVAL_IMAGES_ON_GPU, _EVAL_PIXELS_ON_GPU // pixels))
