"""Memory of the device: how much was used, whether it ran out, and which batch fits into it."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mnft.errors import TrainError

_log = logging.getLogger(__name__)
# What goes through a model at once in evaluation on the CPU.
_PIXELS = 32 * 224 * 224
# What torch says where it raises no OutOfMemoryError. "out of memory" is said by CUDA itself (the
# context, a graph or a library found the GPU full), its driver, Triton, NCCL and Apple's GPUs; then
# come CUDA's libraries, which cannot allocate their handle or workspace, the CPU (Linux, Windows,
# oneDNN), and Python of a thread whose stack has no room.
_WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_..., _HOST_...
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a primitive",
    "std::bad_alloc",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
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


def _peak_of_process() -> float:
    """Bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike ru_maxrss, which begins with what the process that started this one had.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
