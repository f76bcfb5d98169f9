"""The Python environment of LiteRT's converter, which needs an older torch than mnft."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from mnft import files
from mnft.data.store.cache import choose_cache_folder
from mnft.errors import ExportError

_log = logging.getLogger(__name__)

SETUP_COMMAND = "mnft doctor --install tflite"
# The only place that says which versions make the tool-chain. litert-torch 0.10 bounds torch from
# above, and says nothing of the newest of transformers, jax and torchao, which it uses too.
TOOLCHAIN = (
    "litert-torch==0.10.*",
    "ai-edge-litert>=2.3,<2.4",
    "ai-edge-quantizer==0.10.*",
    "torch>=2.14,<2.15",
    "torchvision>=0.29,<0.30",
    "torchao>=0.18,<0.19",
    "jax>=0.10,<0.11",
    "transformers>=5,<6",
)
_MARKER = "complete.json"
_LOG = "setup.log"
# 6.8 GB were seen, with torch for CUDA, and pip unpacks on the side.
_NEEDED_BYTES = 9 << 30
_TAIL_LINES = 12
_PROGRESS = re.compile(r"\s*(Downloading .*\(\d{2,}\.\d MB\)|Installing collected packages)")
_CHECK = """
import json, sys
from importlib.metadata import version
import timm, torchvision, litert_torch, ai_edge_quantizer, ai_edge_litert.interpreter
names = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch", "torchvision", "timm")
with open(sys.argv[1], "w") as target:
    json.dump({name: version(name) for name in names}, target)
"""


def find_folder() -> Path:
    """Where the environment is, or would be; each version of Python has its own."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return choose_cache_folder("auto").absolute() / "environments" / f"litert-{python}"


def find_python() -> Path:
    """Find the interpreter of the environment.

    Raises:
        ExportError: the environment is missing or incomplete; the hint says how to set it up.
    """
    folder = find_folder()
    if problem := _find_problem(folder):
        raise ExportError(
            f"TFLite files are written in a Python environment of their own, which is {problem}",
            hint=f"set it up (about 7 GB, a few minutes): {SETUP_COMMAND}",
        )
    return _python_of(folder)


def describe() -> tuple[bool, str]:
    """Whether the environment works here, and its main packages, or what is wrong with it."""
    folder = find_folder()
    if problem := _find_problem(folder):
        return False, f"its environment is {problem}: {SETUP_COMMAND}"
    marker = _read_marker(folder)
    versions = marker["versions"] if marker else {}
    return True, ", ".join(f"{name} {version}" for name, version in versions.items())


def install(*, on_progress: Callable[[str], None]) -> Path:
    """Set the environment up with `python -m venv` and pip, unless it is there already.

    It is built in its final place, because environments cannot be moved; a marker file, which is
    written last, shows that it is complete. While another process builds it, this one waits.

    Args:
        on_progress: called with a sentence for each step.

    Returns:
        The folder of the environment.

    Raises:
        ExportError: no room on the disk, or venv or pip failed; with the end of the output.
    """
    folder = find_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_progress("another process is setting it up: waiting for it")
        lock.acquire()
    try:
        # The narrow ones first: pip downloads each version that it considers.
        requirements = [*TOOLCHAIN, *_own_requirements()]
        marker = _read_marker(folder)
        if _find_problem(folder) or marker is None or marker["requirements"] != requirements:
            _build(folder, requirements, on_progress)
        else:
            on_progress(f"{folder} is there already")
    finally:
        lock.release()
    return folder


def _own_requirements() -> list[str]:
    """The requirements of mnft itself, without its extras."""
    try:
        lines = requires("mnft") or []
    except PackageNotFoundError as error:
        raise ExportError("mnft is not installed as a package", hint="pip install .") from error
    return [line for line in lines if "extra ==" not in line]


def _build(folder: Path, requirements: list[str], on_progress: Callable[[str], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if (free := shutil.disk_usage(folder.parent).free) < _NEEDED_BYTES:
        raise ExportError(
            f"LiteRT's environment needs {_NEEDED_BYTES / 1e9:.0f} GB in {folder.parent}, "
            f"{free / 1e9:.1f} GB are free",
            hint="the environment variable MNFT_CACHE names another cache folder",
        )
    log_path = folder.parent / f"{folder.name}.{_LOG}"
    python = _python_of(folder)
    try:
        with log_path.open("w", encoding="utf-8") as log:
            step = _Step(log, log_path, on_progress)
            on_progress(f"making {folder}")
            step.run("venv", [sys.executable, "-I", "-m", "venv", str(folder)])
            on_progress("pip looks for versions that fit together")
            step.run("pip", [str(python), "-I", "-m", "pip", "install", *requirements])
            on_progress("trying it")
            versions = folder / "versions.json"
            step.run("importing LiteRT", [str(python), "-I", "-c", _CHECK, str(versions)])
        marker = {
            "toolchain": TOOLCHAIN,
            "requirements": requirements,
            "versions": json.loads(versions.read_text(encoding="utf-8")),
        }
        files.write_json(folder / _MARKER, marker)
    finally:
        if not (folder / _MARKER).is_file():
            shutil.rmtree(folder, ignore_errors=True)  # gigabytes that nobody would use
    _log.info("LiteRT's environment: %s", marker["versions"])


class _Step:
    """Runs the commands of an installation, and keeps their output in a log."""

    def __init__(self, log: IO[str], log_path: Path, on_progress: Callable[[str], None]) -> None:
        self._log = log
        self._log_path = log_path
        self._on_progress = on_progress

    def run(self, name: str, command: Sequence[str]) -> None:
        # The user's pip settings (registries, proxies) hold, except --user, which venvs refuse.
        environment = os.environ | {
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_USER": "0",
        }
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    self._log.write(line)
                    if line.strip() and not line.startswith("WARNING: "):
                        tail.append(line.rstrip())
                    if progress := _PROGRESS.match(line):
                        self._on_progress(progress[1])
            except BaseException:  # Ctrl-C: leaving the block would wait for pip
                process.kill()
                raise
        if process.returncode:
            raise ExportError(
                f"LiteRT's environment cannot be set up: {name} failed with exit code "
                f"{process.returncode}\n" + "\n".join(tail),
                hint=f"the whole output is in {self._log_path}",
            )


def _find_problem(folder: Path) -> str | None:
    """Why the environment cannot be used, worded to follow "is"; None where it can."""
    if not folder.is_dir():
        return "not set up yet"
    marker = _read_marker(folder)
    if marker is None:
        return f"half-made, or another process is making it ({folder})"
    if marker["toolchain"] != list(TOOLCHAIN):
        return f"of another version of mnft ({folder})"
    if not _python_of(folder).exists():  # its link leads to the Python that it was made with
        return f"damaged: {_python_of(folder)} is missing"
    return None


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        whole = {"toolchain", "requirements", "versions"} <= marker.keys()
    except (OSError, ValueError, AttributeError):
        return None
    return marker if whole else None


def _python_of(folder: Path) -> Path:
    if sys.platform == "win32":
        return folder / "Scripts" / "python.exe"
    return folder / "bin" / "python"
