"""`mnft doctor`: what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mnft
from mnft import console
from mnft.data.inspection import count_cores
from mnft.engine.device import cpu_has_bf16, resolve_device, resolve_precision

_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "pillow", "scikit-learn")
_EXTRAS = {"log": ("tensorboard",)}
_SMALL_SHM_MB = 512


def run(*, as_json: bool) -> None:
    """Print versions, devices, memory and extras, and what to mend."""
    device = resolve_device("auto")

    facts: dict[str, Any] = {
        "mnft": mnft.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": count_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "device": str(device),
        "precision": str(resolve_precision("auto", device, key="train.precision")).split(".")[-1],
        "cpu_bf16": cpu_has_bf16(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "shared_memory_mb": _shared_memory_mb(),
        "extras": {n: all(_version(p) for p in ps) for n, ps in _EXTRAS.items()},
    }
    problems = _problems(facts)
    if as_json:
        console.show_json({**facts, "problems": problems})
        return
    shown = {name.replace("_", " "): _in_words(value) for name, value in facts.items()}
    console.show_facts(shown)
    for problem in problems:
        console.warn(problem)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _shared_memory_mb() -> int | None:
    shared = Path("/dev/shm")
    return shutil.disk_usage(shared).free // 1_000_000 if shared.is_dir() else None


def _problems(facts: dict[str, Any]) -> list[str]:
    problems = [
        f"the extra {name} is not installed: pip install 'mnft[{name}]'"
        for name, there in facts["extras"].items()
        if not there
    ]
    shared = facts["shared_memory_mb"]
    if shared is not None and shared < _SMALL_SHM_MB:
        problems.append(
            f"/dev/shm has {shared} MB free: fewer loading processes will be used "
            "(docker run --shm-size=2g gives more)"
        )
    if platform.system() == "Linux" and not facts["gpus"] and shutil.which("nvidia-smi"):
        problems.append("there is an NVIDIA driver, but torch sees no GPU")
    return problems


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_in_words(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not there" if value is None else str(value)
