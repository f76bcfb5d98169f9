"""Choose the device and the precision; seeds and other global settings of torch."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch

from mnft.device.gpu_driver import explain_missing_gpu, has_cuda
from mnft.device.ranks.distributed import Ranks, agree
from mnft.errors import ConfigError

_log = logging.getLogger(__name__)
_ALONE = Ranks()
# glibc's numbers for two settings, and the environment variables with which people set them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MALLOC_SETTINGS = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)
# Image side in pixels from which a CPU with native bf16 trains faster in bf16.
_BF16_FROM = 64
_UPDATES_WORTH_BENCHMARKING = 5_000


def resolve_device(name: str, ranks: Ranks = _ALONE) -> torch.device:
    """Find the device that `train.device` names; a GPU becomes the current device.

    `auto` is CUDA, then Apple's MPS, then the CPU; if it is the CPU on a machine with an NVIDIA
    driver, a warning says why. Several processes call this together, and each takes its own GPU.

    Raises:
        ConfigError: the device is unknown or not on this machine, or there is no GPU for each
            process. Every process raises it.
    """
    places = agree(ranks, lambda: _find_place(name, ranks))
    _check_together(places)
    device = places[ranks.rank].device
    if device.type == "cuda":
        # Otherwise pinned memory, and all that names no device, would open a context on GPU 0.
        torch.cuda.set_device(device)
    falls_back = name == "auto" and device.type == "cpu" and ranks.local_rank == 0
    if falls_back and (reason := explain_missing_gpu()):
        _log.warning("no GPU is used: %s", reason)
    return device


def find_device(name: str, ranks: Ranks = _ALONE) -> torch.device:
    """Find the device as `resolve_device` does, only for this process and without side effects.

    Raises:
        ConfigError: the device is unknown or not on this machine.
    """
    if name in {"auto", "cuda"} and has_cuda():
        # The modulo serves launchers that show each process only its own GPU, as number 0.
        return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"found {name!r}, expected auto, cpu, cuda, cuda:N or mps",
            hint="did you mean cuda?" if name.startswith(("gpu", "cud", "nv")) else None,
            key="train.device",
        ) from error
    if device.index is not None and device.type != "cuda":
        raise ConfigError(
            f"found {name!r}, expected auto, cpu, cuda, cuda:N or mps",
            hint=f"did you mean {device.type}? only GPUs are numbered",
            key="train.device",
        )
    present = {
        "cpu": True,
        "cuda": has_cuda() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        reason = explain_missing_gpu() if device.type == "cuda" and not has_cuda() else None
        raise ConfigError(
            f"this machine has no device {name!r}",
            hint=reason or "`mnft doctor` shows what there is",
            key="train.device",
        )
    if device.type == "cuda" and ranks.world_size > 1:
        raise ConfigError(
            f"found {name!r} for {ranks.world_size} processes, which need a GPU each",
            hint="train.device: cuda gives each process its own",
            key="train.device",
        )
    return device


class _Place(NamedTuple):
    """Where a process computes; `gpu` is the UUID, as the number depends on the process."""

    device: torch.device
    host: str
    gpu: str | None


def _find_place(name: str, ranks: Ranks) -> _Place:
    device = find_device(name, ranks)
    gpu = None
    if device.type == "cuda" and ranks.world_size > 1:
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    return _Place(device, socket.gethostname(), gpu)


def _check_together(places: Sequence[_Place]) -> None:
    """Refuse processes that share a GPU, which NCCL does not support, or mix device types."""
    first = places[0]
    for rank, place in enumerate(places):
        if place.device.type != first.device.type:
            raise ConfigError(
                f"rank 0 (on {first.host}) computes on {first.device.type}, "
                f"rank {rank} (on {place.host}) on {place.device.type}",
                hint="`mnft doctor` shows what a machine has; train.device: cpu goes everywhere",
                key="train.device",
            )
        beside = [other for other in places if other.host == place.host]
        gpus = {other.gpu for other in beside}
        if place.gpu is not None and len(gpus) < len(beside):
            raise ConfigError(
                f"{len(beside)} processes on {place.host} find {len(gpus)} "
                f"GPU{'s' if len(gpus) > 1 else ''}",
                hint=f"start one process a GPU: torchrun --nproc-per-node {len(gpus)}",
                key="train.device",
            )


def resolve_precision(
    name: str, device: torch.device, *, key: str, img_size: int | None = None
) -> torch.dtype:
    """Turn a precision key (`train.precision` or `eval.precision`) into a dtype for a device.

    `auto` is bf16 if the processor has it natively (GPUs from Ampere on, CPUs with AVX512-BF16 or
    AMX), fp16 on older GPUs, and otherwise fp32. On a CPU small images stay in fp32, because bf16
    is no faster there.

    Args:
        name: fp32, bf16, fp16 or auto.
        device: device that computes.
        key: config key that an error names.
        img_size: side of the images in pixels, or None if it is not known.

    Raises:
        ConfigError: fp16 on a CPU, where it is slow and overflows.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU; use bf16 or fp32 on the CPU", key=key)
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported asks the current GPU, not this one. All AMD GPUs have it.
        native = torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and (img_size is None or img_size >= _BF16_FROM) and cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively (AVX512-BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to `dtype`; nothing for fp32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process, which makes training on the CPU faster.

    glibc returns large blocks to the kernel as soon as they are freed, and the kernel has to clear
    new pages for the next tensor of the same size. This does nothing with other C libraries, or if
    the user has set glibc's environment variables.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_SETTINGS):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a static Python; musl
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def benchmark_cudnn(device: torch.device, *, updates: int) -> None:
    """Let cuDNN measure its algorithms for each shape of images, if the training is long enough.

    A training has about five sets of shapes with about 100 convolutions each. Trying up to ten
    algorithms for each takes an estimated 3 to 10 seconds, which a short training does not earn
    back. The limit is an estimate too: benchmarks/gpu/phases.py --tune measures it.

    Args:
        device: device that trains.
        updates: number of updates of the whole training.
    """
    if device.type == "cuda" and updates >= _UPDATES_WORTH_BENCHMARKING:
        # Deterministic algorithms are not chosen by their speed.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


@contextmanager
def without_cudnn_benchmark() -> Iterator[None]:
    """Switch cuDNN's measurements off, for shapes that are computed too rarely to be worth them."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_deterministic(device: torch.device) -> None:
    """Make torch compute the same bits each time, and fail where it cannot."""
    if device.type == "cuda":
        # cuBLAS reads this at the first matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def seed_stream(seed: int, device: torch.device) -> None:
    """Seed the generators of torch that an update on `device` draws from (dropout and the like).

    The random numbers are those after `torch.manual_seed`, which looks for devices of every kind
    and would take 0.1 ms of each update.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. Only this module touches global random states."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
