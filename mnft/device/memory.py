"""Memory of the device: how much was used, whether it ran out, and which batch fits into it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mnft.errors import TrainError, first_line
from mnft.failures import is_out_of_memory
from mnft.host import _peak_of_process

_log = logging.getLogger(__name__)
# What goes through a model at once in evaluation on the CPU.
_PIXELS = 32 * 224 * 224


@contextmanager
def explaining_memory(device: torch.device, *, hint: str) -> Iterator[None]:
    """Turn an error that says that memory ran out into one for people; others pass.

    Args:
        device: that the work runs on.
        hint: what to lower for this work.

    Raises:
        TrainError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
        raise TrainError(f"{device} has too little memory: {reason}", hint=hint) from error


def free_memory() -> None:
    """Give the cached blocks of GPUs back, so that they can be put together anew.

    To be called when the failed attempt's error, which holds its tensors, is gone.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def split_for_evaluation(images: Tensor) -> tuple[Tensor, ...]:
    """Images in the parts that go through a model at once, of the size that suits the device.

    On the CPU a part has as many pixels as 32 images of 224 pixels: more are no faster there, and
    their activations in fp32 come on top of what the training keeps. A GPU takes all at once.

    Args:
        images: (B, C, H, W).
    """
    if images.device.type != "cpu":
        return (images,)
    height, width = images.shape[-2:]
    return torch.split(images, max(1, _PIXELS // (height * width)))


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use at once, in 10^6 bytes.

    On a GPU what tensors took since `reset_peak_memory`; on the CPU what this process (without
    those that load images) took since it began. 0 where it is not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "cpu":
        return _peak_of_process() / 1e6
    return 0.0


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew; the CPU's figure is that of the whole process and stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def find_batch_size(step: Callable[[int], None], *, largest: int, smallest: int = 8) -> int:
    """The first batch size that fits into memory, of `largest`, half of that, and so on.

    From above, as the largest mostly fits: smaller ones need not be tried then.

    Args:
        step: one forward and backward pass of as many random images as it is given.
        largest: where to begin.
        smallest: where to end, or `largest` if that is less.

    Raises:
        TrainError: not even the smallest fits.
    """
    size, smallest = largest, min(smallest, largest)
    while not _fits(step, size):
        if size == smallest:
            raise TrainError(
                f"a batch of {size} images does not fit into memory",
                hint="lower data.img_size, choose a smaller model, or set train.batch_size and "
                "train.accumulation_steps",
            )
        size = max(size // 2, smallest)
    return size


def _fits(step: Callable[[int], None], size: int) -> bool:
    try:
        step(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _log.info("batches of %d images do not fit into memory", size)
        fits = False
    else:
        fits = True
    free_memory()
    return fits
