"""A trained model to a file of another format: one function for each tool-chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from mnft import files
from mnft.errors import ConfigError, ExportError
from mnft.exports.artifact import Artifact, is_export, set_facts
from mnft.exports.coreml import _to_coreml
from mnft.exports.executorch import _to_executorch
from mnft.exports.formats import FORMATS, Format, check_installed
from mnft.exports.graph import build_graph
from mnft.exports.litert import convert as convert_litert
from mnft.exports.litert import environment as litert_environment
from mnft.exports.onnx import write_onnx
from mnft.exports.openvino import _to_openvino
from mnft.exports.quiet import REFUSED, silent
from mnft.exports.torchscript import _to_torchscript
from mnft.host import read_versions
from mnft.model.bundle import Bundle


def check_toolchain(form: Format) -> None:
    """Refuse a format whose files cannot be written here, or not be compared with the model.

    Raises:
        ExportError: with the command that installs what is missing.
    """
    packages = dict.fromkeys((*form.converter, *(form.runtime or ())))
    check_installed(tuple(packages), form.extra, f"{form.title} export")
    if form.name == "tflite":
        litert_environment.find_python()


def convert(bundle: Bundle, form: Format, folder: Path, *, embed: bool) -> Artifact:
    """Write the model file of a format.

    Args:
        bundle: the trained model.
        form: the format.
        folder: where the file goes, under the format's name for it.
        embed: normalisation and softmax go into the graph.

    Returns:
        What the file takes and gives.

    Raises:
        ExportError: the tool-chain is not installed, or cannot take this model.
    """
    check_toolchain(form)
    # Images come as (H, W, C) bytes from cameras and decoders; Core ML has a type for images.
    layout = "NHWC" if embed and form.name != "coreml" else form.layout
    artifact = Artifact(
        format=form.name,
        file=form.file,
        architecture=bundle.architecture,
        class_names=bundle.class_names,
        preprocessing=bundle.preprocessing,
        embedded=embed,
        layout=layout,
        dynamic_batch=form.dynamic_batch,
        precision="fp16" if form.name == "coreml" else "fp32",
        source={"folder": str(bundle.folder), "sha256": bundle.record.get("sha256")},
        facts={"packages": read_versions(("torch", *form.converter))},
    )
    if form.name == "tflite":
        target = folder / form.file
        facts = convert_litert.convert_to_litert(bundle.folder, target, embed_preprocessing=embed)
        return set_facts(artifact, litert=facts)
    graph, example = build_graph(bundle.model, bundle.preprocessing, embed=embed, layout=layout)
    try:
        with silent():
            _WRITERS[form.name](graph, example, artifact, folder / form.file)
    except ImportError as error:
        raise ExportError(f"the packages for {form.title} do not work here: {error}") from error
    except REFUSED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"{bundle.architecture} cannot be exported to {form.title}: {lines[0][:300]}",
            hint="other formats may take it; `mnft -v export ...` shows the whole log",
        ) from error
    return artifact


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Artifact, Path], None]] = {
    "onnx": write_onnx,
    "openvino": _to_openvino,
    "torchscript": _to_torchscript,
    "executorch": _to_executorch,
    "coreml": _to_coreml,
}
assert {*_WRITERS, "tflite"} == FORMATS.keys()


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
