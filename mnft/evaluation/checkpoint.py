"""What `--ckpt` names: a run, a model folder, or an exported file, with the run it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.config.source import Source
from mnft.data.lineage import unpack
from mnft.data.manifest import Manifest, load_manifest
from mnft.errors import CheckpointError
from mnft.exports.artifact import find_artifact
from mnft.exports.model import load_exported
from mnft.model.bundle import RECORD, Bundle, load_bundle
from mnft.runs.folder import RunFolder, find_bundle
from mnft.tasks.folding import fold_temperature


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to run, and where it comes from.

    Attributes:
        bundle: the model, whose outputs are calibrated; an exported file runs in its own runtime.
        run: the folder that the model folder or the export lies in; a run if there is a manifest.
        manifest: the images of the run's splits, or None if the model does not lie in a run.
    """

    bundle: Bundle
    run: RunFolder
    manifest: Manifest | None

    @property
    def trained_on(self) -> frozenset[str]:
        """Shortened SHA-256 of the images that this model, or one before it, was trained on.

        Raises:
            CheckpointError: the model folder's record is damaged.
        """
        recorded = self.manifest.trained_on if self.manifest else frozenset()
        try:
            return recorded | unpack(self.bundle.record.get("trained_on", ""))
        except ValueError as error:
            raise CheckpointError(f"{self.bundle.folder / RECORD}: damaged: {error}") from error


def open_checkpoint(path: Path, *, threads: int | None = None) -> Checkpoint:
    """Open a run's best model, a model folder or an exported file.

    Args:
        path: a run, a model folder, an export folder or its model file.
        threads: number of threads of an exported file's runtime; None leaves it to the runtime.

    Raises:
        MnftError: the path is none of these, or what it names is damaged.
    """
    if (folder := find_artifact(path)) is not None:
        bundle = load_exported(folder, threads=threads)
        # The folder is RUN/exports/onnx. Its parent is taken as typed, so that messages name it so,
        # unless `.` or `..` was typed or the export is a link.
        exports = folder.resolve().parent
        if folder.name not in {"", ".."} and folder.parent.resolve() == exports:
            exports = folder.parent
        run = _run_of(exports)
    else:
        folder = find_bundle(path)
        bundle, run = fold_temperature(load_bundle(folder)), _run_of(folder)
    manifest = _manifest_of(run)
    if manifest is not None and manifest.labels != bundle.labels:
        raise _other_classes(bundle, run, manifest)
    return Checkpoint(bundle, run, manifest)


def open_trained(path: Path) -> Checkpoint:
    """Open a run's best model or a model folder, for commands that cannot use an exported file.

    Raises:
        MnftError: the path is neither, what it names is damaged, or it is an exported file.
    """
    if find_artifact(path) is not None:
        raise CheckpointError(
            f"{path} is an exported file, expected a run or a model folder",
            hint="name the run that it was made from",
        )
    return open_checkpoint(path)


def load_settings(opened: Checkpoint, overrides: Sequence[str]) -> tuple[Config, Source]:
    """Load the config of the model's run, or the defaults if it lies in none, with overrides.

    Raises:
        ConfigError: an override that cannot be used.
    """
    if opened.manifest is not None:
        return load_config(opened.run.config, overrides)
    return load_config(None, ["data.root=.", *overrides])


def portable_path(folder: Path) -> str:
    """A path that also makes sense elsewhere: as given, except `.` and `..`."""
    return str(folder if folder.name not in {"", ".."} else folder.resolve())


def _other_classes(bundle: Bundle, run: RunFolder, manifest: Manifest) -> CheckpointError:
    """The error of a model whose class names are not those of its run; it shows a difference."""
    ours, theirs = bundle.labels, manifest.labels
    what = f"knows {len(ours)} classes, the run {len(theirs)}"
    if len(ours) == len(theirs):
        place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len({*pair}) > 1)
        what = f"calls class {place + 1} {ours[place]!r}, the run {theirs[place]!r}"
    return CheckpointError(
        f"{bundle.folder} has other class names than {run.split}: it {what}",
        hint="bring back the folder, or export the model again; a model of another training "
        "belongs outside of this run",
    )


def _run_of(folder: Path) -> RunFolder:
    """The run that a model folder lies in; `.` and `..` have a parent only once resolved."""
    return RunFolder(folder.parent if folder.name not in {"", ".."} else folder.resolve().parent)


def _manifest_of(run: RunFolder) -> Manifest | None:
    # A config.yaml by itself may belong to something else than a run.
    is_run = run.config.is_file() and run.split.is_file()
    return load_manifest(run.split) if is_run else None


def default_target(opened: Checkpoint, name: str) -> Path:
    """RUN/exports/NAME for the best model; for another model its folder's name is put in front."""
    folder = opened.bundle.folder
    if opened.manifest is not None and folder.resolve() != opened.run.best.resolve():
        name = f"{folder.resolve().name}-{name}"
    parent = opened.run.path if opened.manifest is not None else Path(portable_path(folder))
    return parent / "exports" / name
