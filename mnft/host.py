"""The name of the processor, without which no speed means anything."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def name_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls its processor: "Intel(R) Xeon(R) Platinum 8481C (family 6, model 143)".

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
        if "CPU part" in facts:  # ARM gives numbers alone
            maker = facts.get("CPU implementer", "unknown")
            return f"{platform.machine()}, implementer {maker}, part {facts['CPU part']}"
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()
