"""What `--ckpt` names: a run, a model folder, or an exported file, with the run it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.config.source import Source
from mnft.data.manifest import Manifest, load_manifest
from mnft.edge.artifact import find_artifact
from mnft.edge.runtimes import load_exported
from mnft.errors import CheckpointError
from mnft.model.bundle import Bundle, load_bundle
from mnft.runs.folder import RunFolder, find_bundle


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready to run, and where it comes from.

    Attributes:
        bundle: the model; of an exported file it runs in the file's own runtime.
        run: the folder that holds the model folder, a run where `manifest` is not None.
        manifest: which images the run trained on.
    """

    bundle: Bundle
    run: RunFolder
    manifest: Manifest | None


def open_checkpoint(path: Path, *, threads: int | None = None) -> Opened:
    """Open a run's best model, a model folder or an exported file.

    Args:
        path: of any of them.
        threads: of an exported file's runtime; None leaves it to the runtime.

    Raises:
        MnftError: none of them, or a damaged one.
    """
    if (folder := find_artifact(path)) is not None:
        bundle = load_exported(folder, threads=threads)
        # RUN/exports/onnx
        exports = folder.resolve().parent
        # As it was typed, unless the name says little (`.`) or the export is a link.
        if folder.name not in {"", ".."} and folder.parent.resolve() == exports:
            exports = folder.parent
        run = _run_of(exports)
        return Opened(bundle, run, _manifest_of(run))
    folder = find_bundle(path)
    run = _run_of(folder)
    return Opened(load_bundle(folder), run, _manifest_of(run))


def open_trained(path: Path) -> Opened:
    """Open a run's best model or a model folder, to make something of it.

    Raises:
        MnftError: none of them, a damaged one, or an exported file.
    """
    if find_artifact(path) is not None:
        raise CheckpointError(
            f"{path} is an exported file, expected a run or a model folder",
            hint="name the run that it was made from",
        )
    return open_checkpoint(path)


def load_settings(opened: Opened, overrides: Sequence[str]) -> tuple[Config, Source]:
    """The run's config with overrides; of a model folder that lies in no run, the defaults.

    Raises:
        ConfigError: an override that cannot be used.
    """
    if opened.manifest is not None:
        return load_config(opened.run.config, overrides)
    return load_config(None, ["data.root=.", *overrides])


def spell(folder: Path) -> str:
    """A path that still says something elsewhere: as given, but for `.` and `..`."""
    return str(folder if folder.name not in {"", ".."} else folder.resolve())


def _run_of(folder: Path) -> RunFolder:
    """The run that a model folder lies in; `.` and `..` have a parent only once resolved."""
    return RunFolder(folder.parent if folder.name not in {"", ".."} else folder.resolve().parent)


def _manifest_of(run: RunFolder) -> Manifest | None:
    # config.yaml alone is a usual name for other things.
    is_run = run.config.is_file() and run.split.is_file()
    return load_manifest(run.split) if is_run else None
