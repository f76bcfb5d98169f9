"""`mnft doctor`: what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mnft
from mnft import console
from mnft.errors import ConfigError
from mnft.exports.formats import FORMATS, Format
from mnft.exports.litert import environment as litert_environment
from mnft.host import count_cores, find_missing, name_processor

_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "pillow", "scikit-learn")
_EXTRAS = {
    "log": ("tensorboard",),
    "heic": ("pillow-heif",),
    "prune": ("torch-pruning",),
    "qat": ("torchao",),
}
_SMALL_SHM_MB = 512


def run(*, as_json: bool) -> None:
    """Print versions, devices, memory and extras, and what to fix."""
    with console.loading():  # not for `--install`, which has no need of torch
        import torch

        from mnft.device.gpu_driver import has_cuda, read_driver_version
        from mnft.device.select import cpu_has_bf16, find_device, resolve_precision

    device = find_device("auto")
    # The driver counts GPUs that torch cannot use, as where it is too old.
    count = torch.cuda.device_count() if has_cuda() else 0
    gpus = [torch.cuda.get_device_properties(number) for number in range(count)]
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    shared = Path("/dev/shm")
    facts: dict[str, Any] = {
        "mnft": mnft.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": name_processor(),
        "cores": count_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [gpu.name for gpu in gpus],
        "gpu_memory_gb": [round(gpu.total_memory / 1e9, 1) for gpu in gpus],
        "nvidia_driver": read_driver_version(),
        "torch_cuda": torch.version.cuda,
        "cudnn": cudnn and f"{cudnn // 10_000}.{cudnn // 100 % 100}.{cudnn % 100}",
        "device": str(device),
        "precision": str(resolve_precision("auto", device, key="train.precision")).split(".")[-1],
        "cpu_bf16": cpu_has_bf16(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "shared_memory_mb": shutil.disk_usage(shared).free // 1_000_000
        if shared.is_dir()
        else None,
        "extras": {n: all(_version(p) for p in ps) for n, ps in _EXTRAS.items()},
        "export": {fmt.name: _describe_export(fmt) for fmt in FORMATS.values()},
    }
    problems = _problems(facts)
    if as_json:
        console.show_json({**facts, "problems": problems})
        return
    exports = facts.pop("export")
    shown = {name.replace("_", " "): _in_words(value) for name, value in facts.items()}
    shown |= {f"export {name}": words for name, words in exports.items()}
    console.show_facts(shown)
    for problem in problems:
        console.warn(problem)


def install(name: str) -> None:
    """Set up the environment of a tool-chain that needs one of its own.

    Raises:
        ConfigError: no such tool-chain.
        ExportError: it cannot be set up.
    """
    names = [fmt.name for fmt in FORMATS.values() if fmt.own_environment]
    if name not in names:
        raise ConfigError(f"--install: found {name!r}, expected {', '.join(names)}")
    folder = litert_environment.install(on_progress=console.note)
    console.done(f"{name} export works")
    console.show_data(str(folder))


def _describe_export(fmt: Format) -> str:
    """Whether `mnft export` can write a format here and prove it, or what is missing."""
    hint = f"pip install 'mnft[{fmt.extra}]'"
    if fmt.own_environment:
        works, text = litert_environment.describe()
        if not works:
            return f"no: {text}"
    if missing := find_missing(fmt.converter):
        return f"no: {', '.join(missing)} is not installed: {hint}"
    if fmt.runtime is None:
        return "yes, but its files cannot be run here, so parity is not checked"
    if missing := find_missing(fmt.runtime):
        return f"no: {', '.join(missing)}, which runs its files, is not installed: {hint}"
    return "yes"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
    from mnft.device.gpu_driver import explain_missing_gpu

    if not facts["gpus"] and (reason := explain_missing_gpu()):
        problems.append(reason)
    return problems


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_in_words(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not there" if value is None else str(value)
