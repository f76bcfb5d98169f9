"""From a model folder to a TFLite file, by a worker in LiteRT's own environment."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mnft
from mnft import files
from mnft.errors import ExportError
from mnft.exports.litert import environment as litert_environment

_log = logging.getLogger(__name__)
_TAIL_LINES = 12
# Not PYTHONPATH: where mnft is installed, that would bring in all packages beside it, the newer
# torch among them.
_BOOTSTRAP = """
import runpy, sys
from importlib.util import module_from_spec, spec_from_file_location
folder = sys.argv.pop(1)
spec = spec_from_file_location("mnft", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["mnft"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module("mnft.exports.litert.worker", run_name="__main__", alter_sys=True)
"""


def convert_to_litert(
    model_folder: Path, target: Path, *, embed_preprocessing: bool
) -> dict[str, Any]:
    """Write a TFLite file for one image (1, H, W, C) at a time.

    Args:
        model_folder: a folder that `load_bundle` opens.
        target: where to write the file; an older one is replaced when all went well.
        embed_preprocessing: whether normalisation and the task's activation go into the file.

    Returns:
        Shapes and types of the file, and versions.

    Raises:
        ExportError: the environment is missing, or the tool-chain cannot take the model; with the
            end of its log.
    """
    python = litert_environment.find_python()
    with (
        tempfile.TemporaryDirectory(prefix="mnft-litert-") as scratch,
        files.atomic_path(target) as temporary,
    ):
        folder = Path(scratch)
        request: dict[str, Any] = {
            "model_folder": str(model_folder.absolute()),
            "target": str(temporary.absolute()),
            "answer": str(folder / "answer.json"),
            "embed_preprocessing": embed_preprocessing,
        }
        return _run_worker(python, request, model_folder)


def _run_worker(python: Path, request: Mapping[str, Any], model_folder: Path) -> dict[str, Any]:
    answer_path = Path(request["answer"])
    request_path = answer_path.with_name("request.json")
    log_path = answer_path.with_name("log.txt")
    request_path.write_text(json.dumps(request), encoding="utf-8")
    package = str(Path(mnft.__file__).parent)
    command = [str(python), "-I", "-u", "-c", _BOOTSTRAP, package, str(request_path)]
    # A converter has no use for a GPU, and would take most of its memory.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    with log_path.open("wb") as log:
        code = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        ).returncode
    text = log_path.read_text(encoding="utf-8", errors="replace")
    _log.info("LiteRT's converter:\n%s", textwrap.indent(text, "  "))
    try:
        answer: dict[str, Any] = json.loads(answer_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it crashed, or was killed
        answer = {}
    if code == 0 and answer:
        return answer
    if "error" in answer:
        raise ExportError(answer["error"], hint=answer.get("hint"))
    end = f"exit code {code}"
    if code < 0:
        end = f"its process was killed by signal {-code} (9: often for lack of memory)"
    lines = [f"  {line.rstrip()}" for line in text.splitlines() if line.strip()]
    tail = "\n".join(lines[-_TAIL_LINES:]) or "  (it said nothing)"
    raise ExportError(
        f"{model_folder}: LiteRT cannot convert it: {end}\n{tail}",
        hint="`mnft -v export ...` shows the whole log; other formats may take this model",
    )
