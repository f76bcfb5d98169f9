"""The machine that work runs on: device, arithmetic precision, seeds."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from mnft.errors import ConfigError

# glibc's numbers of its settings, and the environment variables by which people choose them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MALLOC_SETTINGS = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)
# Side of the images, in pixels, from which a CPU with bf16 trains faster in bf16.
_BF16_FROM = 64


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device that `train.device` names; `auto` is CUDA, then Apple's MPS, then the CPU.

    Of several processes on one machine each takes the GPU of its number.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    if name in {"auto", "cuda"} and torch.cuda.is_available():
        if local_rank >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"process {local_rank + 1} of this machine finds {count} GPUs",
                hint="start one process a GPU: torchrun --nproc-per-node",
                key="train.device",
            )
        return torch.device("cuda", local_rank)
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
            hint=f"did you mean {device.type}? GPUs alone have numbers",
            key="train.device",
        )
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise ConfigError(
            f"this machine has no device {name!r}",
            hint="`mnft doctor` shows what there is",
            key="train.device",
        )
    return device


def resolve_precision(
    name: str, device: torch.device, *, key: str, img_size: int | None = None
) -> torch.dtype:
    """The dtype that a precision key (`train.precision` or `eval.precision`) names on a device.

    `auto` is bf16 where the processor has it natively (GPUs from Ampere on, CPUs with AVX512-BF16
    or AMX), fp16 on older GPUs, and else fp32. On a CPU small images stay in fp32, as bf16 gains
    nothing there.

    Args:
        name: fp32, bf16, fp16 or auto.
        device: that computes.
        key: of the config, for the error.
        img_size: side of the images in pixels, or None where it is not known.

    Raises:
        ConfigError: fp16 on a CPU, where it is slow and overflows.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU; use bf16 or fp32 on the CPU", key=key)
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
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
    """Let freed tensors stay with the process, which on the CPU makes training faster.

    glibc gives large blocks back to the kernel as soon as they are freed, and the kernel clears
    fresh pages for the next tensor of the same size. Nothing happens where the C library is
    another one, or where its environment variables say what is wanted.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_SETTINGS):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a static Python; musl
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def tune(device: torch.device) -> None:
    """Let cuDNN try which of its algorithms is the fastest for each shape of images."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


@contextmanager
def without_tuning() -> Iterator[None]:
    """For shapes that are computed once, where trying algorithms costs more than it gains."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_deterministic(device: torch.device) -> None:
    """Let operations give the same bits each time, and fail where torch has no such operation."""
    if device.type == "cuda":
        # Read when the first matrix product starts cuBLAS.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def seed_stream(seed: int, device: torch.device) -> None:
    """Seed torch's generators that an update on `device` draws from (dropout and the like).

    The same streams as after `torch.manual_seed`, which takes 0.1 ms an update, as it looks for
    devices of every kind.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; only this module touches global random states."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
