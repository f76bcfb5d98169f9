"""Features of a frozen backbone, computed once, and the head that is fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from mnft.data.batches.batch import Batch
from mnft.device.machine import Machine
from mnft.device.ranks.rows import Rows
from mnft.device.select import autocast
from mnft.model.freeze import evaluating
from mnft.model.linear_head import find_linear_head, forward_features
from mnft.tasks.base import FittedHead
from mnft.tasks.outputs import Features
from mnft.training.inference import InParts


def compute_features(
    model: nn.Module,
    batches: Iterable[Batch],
    machine: Machine,
    *,
    dtype: torch.dtype,
    on_images: Callable[[int], None] | None = None,
) -> Features:
    """Run the backbone, in evaluation mode, over batches that hold every image once.

    Args:
        model: a model for which `has_linear_head` holds; it is given back in the mode it came in.
        batches: batches of this process; the features of all are brought together, in order.
        machine: where to compute.
        dtype: arithmetic.
        on_images: called with the number of images of each batch that is done.
    """
    rows = Rows(machine.ranks)
    compute = InParts(lambda images: forward_features(model, images).float())
    with torch.inference_mode(), autocast(machine.device, dtype), evaluating(model):
        for batch in batches:
            rows.add(batch.positions, compute(batch.images), batch.targets)
            if on_images:
                on_images(len(batch.positions))
        collected = rows.collect()
    assert collected is not None
    _, values, targets = collected
    return Features(values.clone(), targets.clone())  # autograd refuses inference tensors


def set_head(model: nn.Module, fitted: FittedHead) -> None:
    """Give a model the fitted head."""
    head = find_linear_head(model)
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        if head.bias is not None:
            head.bias.copy_(fitted.bias)
