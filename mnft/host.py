"""What this machine has: processor, cores, memory, installed packages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path


def name_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The system's name for its processor: "Intel(R) Xeon(R) Platinum 8481C (family 6, model 143)".

    Virtual machines often hide the name, but seldom the family and the model.
    """
    if cpuinfo.is_file():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        pairs = (line.partition(":")[::2] for line in text.splitlines())
        facts = {key.strip(): value.strip() for key, value in pairs}
        if "model name" in facts:
            numbers = [
                f"{key.removeprefix('cpu ')} {facts[key]}"
                for key in ("cpu family", "model")
                if key in facts
            ]
            return (
                f"{facts['model name']} ({', '.join(numbers)})" if numbers else facts["model name"]
            )
        if "CPU part" in facts:  # ARM gives only numbers
            maker = facts.get("CPU implementer", "unknown")
            return f"{platform.machine()}, implementer {maker}, part {facts['CPU part']}"
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def count_cores() -> int:
    """Cores that this process may use; only Linux tells which those are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_peak_memory() -> int | None:
    """The most bytes of RAM that this process has held; None where Linux does not tell."""
    # VmHWM, not ru_maxrss, which begins with what the process that started this one had.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def peak_of_process() -> float:
    """Bytes."""
    if (peak := read_peak_memory()) is not None:
        return float(peak)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(highest if sys.platform == "darwin" else highest * 1024)


def find_missing(packages: tuple[str, ...]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if _version(name) is None]


def read_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The installed versions, for records."""
    installed = {name: _version(name) for name in packages}
    return {name: text for name, text in installed.items() if text is not None}


def _version(name: str) -> str | None:
    # 15 ms that `mnft --help`, which reads the table of formats, does not spend.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
