"""Memory of the device: what it says when it runs out, how to free it, and how much was used."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mnft.errors import TrainError, first_line
from mnft.failures import is_out_of_memory
from mnft.host import peak_of_process


@contextmanager
def explaining_memory(device: torch.device, *, hint: str) -> Iterator[None]:
    """Turn an error that means that memory ran out into one for people; other errors pass.

    Args:
        device: device that the work runs on.
        hint: what the user can lower.

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
    """Return the GPU's cached blocks, so that larger ones can be allocated.

    Call this outside of `except`: the error of a failed attempt holds its tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def peak_memory_mb(device: torch.device) -> float:
    """Measure the peak memory in units of 10^6 bytes; 0 if it is not known.

    On a GPU this is what tensors took since `reset_peak_memory`. On the CPU it is what this process
    took since it began, without the processes that load images.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "cpu":
        return peak_of_process() / 1e6
    return 0.0


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement on a GPU; the CPU's is of the whole process and cannot restart."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
