"""A model file in its own runtime: NumPy arrays in, NumPy arrays out; torch only where it is it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnft.errors import ExportError
from mnft.exports.artifact import Artifact
from mnft.exports.executorch import _ExecuTorch
from mnft.exports.formats import FORMATS, Session, check_installed
from mnft.exports.litert.session import _LiteRt
from mnft.exports.onnx import _Onnx
from mnft.exports.openvino import _OpenVino
from mnft.exports.quiet import silent
from mnft.exports.torchscript import _TorchScript


def open_session(folder: Path, artifact: Artifact, *, threads: int | None = None) -> Session:
    """Load a model file into its runtime.

    Args:
        folder: of the export.
        artifact: what its model.json says.
        threads: to compute with; None leaves it to the runtime.

    Raises:
        ExportError: the runtime is not installed, does not exist here, or refuses the file.
    """
    form = FORMATS.get(artifact.format)
    if form is None:
        raise ExportError(f"{folder}: unknown format {artifact.format!r}")
    if form.runtime is None:
        raise ExportError(
            f"{form.title} files cannot be run here",
            hint="on macOS, Xcode and coremltools run them; compare with labels.txt and model.json",
        )
    check_installed(form.runtime, form.extra, f"running {form.title} files")
    try:
        with silent():
            session: Session = _SESSIONS[form.name](folder / artifact.file, threads)
    except ImportError as error:
        raise ExportError(f"the packages that run {form.title} do not work: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{folder / artifact.file}: {form.title} cannot open it: {reason[:300]}"
        ) from error
    return session


_SESSIONS: dict[str, Any] = {
    "onnx": _Onnx,
    "openvino": _OpenVino,
    "torchscript": _TorchScript,
    "executorch": _ExecuTorch,
    "tflite": _LiteRt,
}
