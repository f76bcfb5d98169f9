"""From a trained model to a file of another format."""

from __future__ import annotations

from pathlib import Path

from mnft import files
from mnft.errors import ConfigError, ExportError, foreign
from mnft.exports.artifact import Artifact, is_export, set_facts
from mnft.exports.formats import Format, check_installed
from mnft.exports.graph import build_graph
from mnft.exports.litert import environment as litert_environment
from mnft.exports.quiet import silent
from mnft.host import read_versions
from mnft.model.bundle import Bundle
from mnft.tasks import load_activation
from mnft.tasks.folding import fold_temperature


def check_toolchain(fmt: Format) -> None:
    """Refuse a format whose files cannot be written here, or not be compared with the model.

    Raises:
        ExportError: with the command that installs what is missing.
    """
    packages = dict.fromkeys((*fmt.converter, *(fmt.runtime or ())))
    check_installed(tuple(packages), fmt.extra, f"{fmt.title} export")
    if fmt.own_environment:
        litert_environment.find_python()


def convert(bundle: Bundle, fmt: Format, folder: Path, *, embed: bool) -> Artifact:
    """Write the model file of a format.

    Args:
        bundle: the trained model.
        fmt: the format.
        folder: where to write the file, which gets the format's name for it.
        embed: whether normalisation and the task's activation go into the file.

    Returns:
        What the file takes and gives.

    Raises:
        ExportError: the tool-chain is not installed, or cannot take this model.
    """
    check_toolchain(fmt)
    bundle = fold_temperature(bundle)
    activation = load_activation(bundle.task)
    artifact = Artifact(
        format=fmt.name,
        file=fmt.file,
        architecture=bundle.architecture,
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        output_name=activation.name if embed else activation.outputs,
        embedded=embed,
        task=bundle.task,
        settings=bundle.settings,
        layout=fmt.embedded_layout if embed else fmt.layout,
        dynamic_batch=fmt.dynamic_batch,
        precision=fmt.precision,
        source={"folder": str(bundle.folder), "sha256": bundle.record.get("sha256")},
        facts={"packages": read_versions(("torch", *fmt.converter))},
    )
    graph, example = build_graph(
        bundle.model,
        bundle.preprocessing,
        activation.apply if embed else None,
        layout=artifact.layout,
    )
    what = f"{bundle.architecture} cannot be exported to {fmt.title}"
    hint = "other formats may take it; `mnft -v export ...` shows the whole log"
    with foreign(what, ExportError, hint=hint), silent():
        facts = fmt.load_module().write(graph, example, artifact, folder / fmt.file)
    return set_facts(artifact, **facts or {})


def check_target(target: Path) -> None:
    """Refuse to replace what is not an earlier export.

    Raises:
        ConfigError: something else is there.
    """
    if target.resolve() == Path.cwd():
        raise ConfigError(
            f"--output: {target} is the current folder, and an export is a folder of its own",
            hint="name a new folder: --output DIR",
        )
    if not (target.exists() or target.is_symlink()):
        parent = next(folder for folder in target.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise ConfigError(f"--output: {parent} is a file, expected a folder")
    files.check_replaceable(target, "export", is_export)
