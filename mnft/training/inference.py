"""Run a model over evaluation batches and collect what it gives; every image counts once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mnft.config.schema import EvalConfig
from mnft.data.batches.batch import Batch
from mnft.data.decode import BadImage
from mnft.device.memory import free_memory, split_for_evaluation
from mnft.device.ranks.distributed import Ranks, gather
from mnft.device.select import autocast
from mnft.failures import is_out_of_memory
from mnft.model.freeze import evaluating
from mnft.preprocessing import Preprocessing
from mnft.tasks.base import Outputs

_log = logging.getLogger(__name__)
# Numbers that stay on a device before they are copied from it: 256 MiB in float32.
_MOST_KEPT = 1 << 26


# Images in an evaluation batch where the config leaves it open, and the most pixels on a GPU.
_EVAL_IMAGES = 64
_EVAL_IMAGES_ON_GPU = 256
_EVAL_PIXELS_ON_GPU = 256 * 224 * 224


def compute_outputs(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks | None = None,
    flip: bool = False,
    on_images: Callable[[int], None] | None = None,
) -> Outputs:
    """Evaluate a model on batches; the outputs of all processes are brought together.

    Args:
        model: is evaluated in evaluation mode and given back in the mode it came in.
        batches: of this process.
        num_classes: K.
        device: where the model is.
        dtype: arithmetic.
        ranks: the processes that share the images.
        flip: average the logits of each image and of its mirror image (test-time augmentation).
        on_images: called with the number of images of each batch done.
    """
    ranks = ranks or Ranks()
    rows = Rows(ranks)
    bad: dict[int, BadImage] = {}

    def compute(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            logits: Tensor = model(images)
            if flip:
                logits = (logits + model(images.flip(-1))) / 2
        return logits.float()

    with torch.inference_mode(), evaluating(model):
        fitting = InParts(compute)
        for batch in batches:
            bad |= dict(batch.bad)
            if len(batch.images):
                rows.add(batch.positions, fitting(batch.images), batch.targets)
            if on_images:
                on_images(len(batch.positions) + len(batch.bad))
        found = rows.collect()
    for theirs in gather(ranks, bad):
        bad |= theirs
    if found is None:
        empty = np.empty(0, dtype=np.int64)
        return Outputs(empty, np.empty((0, num_classes), dtype=np.float32), empty, bad)
    positions, logits, targets = (column.numpy() for column in found)
    return Outputs(positions, logits, targets, bad)


class Rows:
    """Collects a row of numbers of each image, which batches leave on the device.

    A copy to the host waits for all that the device has been given to do, so there is one at the
    end instead of two for each batch.

    Args:
        ranks: the processes that share the images.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_kept = 0
        self._copied: list[tuple[Tensor, ...]] = []

    def add(self, positions: Sequence[int], values: Tensor, targets: Tensor) -> None:
        """Take the rows of one batch.

        Args:
            positions: B places of the images in the order of all.
            values: (B, D) float.
            targets: (B,) int64.
        """
        self._kept.append((torch.tensor(positions), values, targets))
        self._num_kept += values.numel()
        if self._num_kept >= _MOST_KEPT:
            self._copy()

    def collect(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """All rows of all processes on the CPU, in the order of the images; None without any.

        Returns:
            Positions (N,) int64, ascending, values (N, D) and targets (N,) int64.
        """
        self._copy()
        parts = [part for own in gather(self._ranks, self._copied) for part in own]
        if not parts:
            return None
        positions, values, targets = (torch.cat(columns) for columns in zip(*parts, strict=True))
        order = positions.argsort()
        return positions[order], values[order], targets[order]

    def _copy(self) -> None:
        if self._kept:
            columns = zip(*self._kept, strict=True)
            self._copied.append(tuple(torch.cat(column).cpu() for column in columns))
            self._kept.clear()
            self._num_kept = 0


class InParts:
    """Computes batches in as few parts as the memory allows.

    Where memory runs out the batch is computed again in twice as many parts, and so are all that
    follow. Without gradients and with BatchNorm's own statistics the parts do not matter.

    Args:
        compute: (B, C, H, W) images to (B, D) numbers.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._parts = 1

    def __call__(self, images: Tensor) -> Tensor:
        """(B, D) of a whole batch.

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
            # Not within `except`: the error holds the tensors of the attempt.
            self._parts *= 2
            _log.warning("out of memory: batches are now evaluated in %d parts", self._parts)
            free_memory()


def _forward(model: nn.Module, images: Tensor, flip: bool) -> Tensor:
    logits: Tensor = model(images)
    return (logits + model(images.flip(-1))) / 2 if flip else logits


def choose_eval_batch_size(
    config: EvalConfig, preprocessing: Preprocessing, *, stored_for: torch.device | None = None
) -> int:
    """`eval.batch_size`, or what `auto` stands for.

    A GPU that need not wait for images to be decoded takes more of them at once, as long as they
    are not large.

    Args:
        config: of the evaluation.
        preprocessing: of the model's input.
        stored_for: the device that evaluates stored images; None where images are decoded.
    """
    if config.batch_size != "auto":
        return config.batch_size
    if stored_for is None or stored_for.type != "cuda":
        return _EVAL_IMAGES
    pixels = math.prod(preprocessing.input_size[1:])
    return max(_EVAL_IMAGES, min(_EVAL_IMAGES_ON_GPU, _EVAL_PIXELS_ON_GPU // pixels))
