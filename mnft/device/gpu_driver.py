"""Explain why torch finds no GPU on a machine that has an NVIDIA driver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import torch

_VERSION_FILE = Path("/proc/driver/nvidia/version")
_SELECTOR = "https://pytorch.org/get-started"


def has_cuda() -> bool:
    """Whether torch can use a GPU through CUDA (or ROCm); opens no context on one."""
    with warnings.catch_warnings():
        # Torch warns once if it cannot use the driver; `explain_missing_gpu` says more.
        warnings.filterwarnings("ignore", message="CUDA initialization")
        return torch.cuda.is_available()


def read_driver_version() -> str | None:
    """Read the version of the NVIDIA driver, such as "570.86.15"; None if no driver is loaded."""
    if _VERSION_FILE.is_file():
        text = _VERSION_FILE.read_text(encoding="utf-8", errors="replace")
    elif command := shutil.which("nvidia-smi"):  # WSL has it, but not that file
        ask = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
    else:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text.partition("\n")[0])
    return found[0] if found else None


def explain_missing_gpu() -> str | None:
    """Explain why torch finds no GPU on a machine with an NVIDIA driver, and what to do about it.

    Returns:
        The explanation; None if there is no sign of a driver, or the GPUs are hidden on purpose.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return None
    driver = read_driver_version()
    if driver is None and shutil.which("nvidia-smi") is None:
        return None
    there = f"an NVIDIA driver ({driver})" if driver else "nvidia-smi"
    if torch.version.cuda is None:
        return (
            f"there is {there}, but torch {torch.__version__} is built without CUDA; install a "
            f"build with CUDA, as {_SELECTOR} shows"
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
    else:
        return None
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    if found := re.search(r"too old \(found version (\d+)\)", reason):
        major, minor = int(found[1]) // 1000, int(found[1]) % 1000 // 10
        return (
            f"the NVIDIA driver ({driver}) is too old: it is for CUDA {major}.{minor}, and "
            f"{built}; update the driver, or install the CUDA {major} build of torch and "
            f"torchvision, as {_SELECTOR} says"
        )
    return (
        f"there is {there}, but torch finds no GPU: {reason} ({built}); `nvidia-smi` shows whether "
        "the driver works; a container needs --gpus all, a SLURM job --gres=gpu:1"
    )
