"""What a script found: a line for each check, the verdict, and both as JSON."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any


class Report:
    """Prints a line for each check, and keeps what the verdict and the JSON file need.

    Args:
        script: its name.
        device: where mnft runs, for example "cuda:0".
    """

    def __init__(self, script: str, device: str) -> None:
        self.versions = _find_versions(device)
        self.figures: dict[str, Any] = {}
        self.checks: list[dict[str, str]] = []
        self._script = script
        self._on_gpu = device.startswith("cuda")
        print(f"{script}: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()), flush=True)

    def check(self, what: str, ok: bool, found: str = "") -> bool:
        """Print one line of what must hold, with what was found; gives `ok` back."""
        self._line("ok" if ok else "FAIL", what, found)
        return ok

    def skip(self, what: str, why: str) -> None:
        """Print that something is not checked here."""
        self._line("skip", what, why)

    def note(self, text: str) -> None:
        """Print what is worth reading and is not judged."""
        print(f"     {text}", flush=True)

    def _line(self, result: str, what: str, found: str) -> None:
        self.checks.append({"result": result, "what": what, "found": found})
        print(f"{result:<4} {what}" + (f": {found}" if found else ""), flush=True)

    def finish(self, file: Path | None) -> int:
        """Print the verdict and write the JSON file; gives the exit code."""
        count = {r: sum(c["result"] == r for c in self.checks) for r in ("ok", "FAIL", "skip")}
        words = f"{count['ok']} ok, {count['FAIL']} failed, {count['skip']} skipped"
        if not self._on_gpu:
            words += "; this ran on the CPU and says nothing about GPUs"
        verdict = "FAIL" if count["FAIL"] or not count["ok"] else "ok"
        print(f"{verdict}: {self._script}: {words}", flush=True)
        if file is not None:
            record: dict[str, Any] = {"script": self._script, "verdict": verdict}
            record |= {"versions": self.versions, "checks": self.checks, "figures": self.figures}
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return int(verdict != "ok")


def _find_versions(device: str) -> dict[str, str]:
    import timm
    import torch

    import mnft

    found = {"device": device, "mnft": mnft.__version__, "python": platform.python_version()}
    found |= {"torch": torch.__version__, "timm": timm.__version__}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
        driver = Path("/proc/driver/nvidia/version")
        if driver.exists():
            found["driver"] = driver.read_text().splitlines()[0].partition(":")[2].strip()
    return found
