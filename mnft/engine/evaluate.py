"""Run a model over evaluation batches and collect its logits; every image counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnft.data.batches import Batch
from mnft.engine.device import autocast
from mnft.engine.distributed import Ranks, gather
from mnft.engine.memory import split_for_evaluation
from mnft.results import BadImage

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model said of each image.

    Attributes:
        positions: (N,) int64, ascending: positions of the images in the list of paths.
        logits: (N, K) float32.
        targets: (N,) int64.
        bad: images that could not be decoded, by position.
    """

    positions: Array
    logits: Array
    targets: Array
    bad: dict[int, BadImage]


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
    parts: list[tuple[Array, Array, Array]] = []
    bad: dict[int, BadImage] = {}
    with torch.inference_mode(), evaluating(model):
        for batch in batches:
            bad |= dict(batch.bad)
            if len(batch.images):
                with autocast(device, dtype):
                    logits = torch.cat(
                        [_forward(model, part, flip) for part in split_for_evaluation(batch.images)]
                    )
                parts.append(
                    (
                        np.asarray(batch.positions, dtype=np.int64),
                        logits.float().cpu().numpy(),
                        batch.targets.cpu().numpy(),
                    )
                )
            if on_images:
                on_images(len(batch.positions) + len(batch.bad))
    parts = [part for own in gather(ranks or Ranks(), parts) for part in own]
    for theirs in gather(ranks or Ranks(), bad):
        bad |= theirs
    if not parts:
        empty = np.empty(0, dtype=np.int64)
        return Outputs(empty, np.empty((0, num_classes), dtype=np.float32), empty, bad)
    positions, logits_of_all, targets = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    order = np.argsort(positions)
    return Outputs(positions[order], logits_of_all[order], targets[order], bad)


def _forward(model: nn.Module, images: Tensor, flip: bool) -> Tensor:
    logits: Tensor = model(images)
    return (logits + model(images.flip(-1))) / 2 if flip else logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module gets back the mode that it had."""
    mode = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in mode.items():
            module.training = training
