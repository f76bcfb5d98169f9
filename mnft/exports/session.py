"""From a model file to a session: NumPy arrays in, NumPy arrays out.

Imports torch for TorchScript only, so that the memory of a measured process is its runtime's.
"""

from __future__ import annotations

from pathlib import Path

from mnft.errors import ExportError, foreign
from mnft.exports.artifact import Artifact
from mnft.exports.formats import FORMATS, Session, check_installed
from mnft.exports.quiet import silent


def open_session(folder: Path, artifact: Artifact, *, threads: int | None = None) -> Session:
    """Load a model file into its runtime.

    Args:
        folder: the folder of the export.
        artifact: the content of its model.json.
        threads: how many threads the runtime computes with; None leaves it to the runtime.

    Raises:
        ExportError: the runtime is not installed, does not exist here, or refuses the file.
    """
    fmt = FORMATS.get(artifact.format)
    if fmt is None:
        raise ExportError(f"{folder}: unknown format {artifact.format!r}")
    if fmt.runtime is None:
        raise ExportError(
            f"{fmt.title} files cannot be run here",
            hint="on macOS, Xcode and coremltools run them; compare with labels.txt and model.json",
        )
    check_installed(fmt.runtime, fmt.extra, f"running {fmt.title} files")
    path = folder / artifact.file
    with foreign(f"{path}: {fmt.title} cannot open it", ExportError), silent():
        return fmt.load_module().open(path, threads)
