"""A trained model to a file of another format: one function for each tool-chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnft.errors import ExportError
from mnft.exports.artifact import INPUT_NAME, Artifact, describe_metadata, set_facts
from mnft.exports.formats import FORMATS, Format, check_installed, read_versions
from mnft.exports.graph import build_graph
from mnft.exports.litert import convert as convert_litert
from mnft.exports.litert import environment as litert_environment
from mnft.exports.quiet import forbid_telemetry, silent
from mnft.model.bundle import Bundle

_OPSET = 18
LARGEST_BATCH = 4096
# What tracers and tool-chains raise on models that they cannot take.
REFUSED = (
    RuntimeError,
    ValueError,
    TypeError,
    NotImplementedError,
    LookupError,
    AttributeError,
    AssertionError,
)


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


def write_onnx(
    graph: nn.Module, example: Tensor, artifact: Artifact, path: Path, *, opset: int = _OPSET
) -> None:
    """Write a module as one ONNX file, with class names and preprocessing in its metadata.

    Args:
        graph: what `build_graph` gives, or an exported program.
        example: two images, for tracing.
        artifact: what the file takes and gives.
        path: of the file.
        opset: of ONNX; int8 needs 21.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=[artifact.output_name],
        dynamic_shapes=({0: batch},),
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    _strip(model)
    onnx.helper.set_model_props(model, describe_metadata(artifact))
    onnx.save(model, str(path))


def _strip(model: Any) -> None:
    """Take away what torch notes of each operator: paths on this machine, and 2% of the size."""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]


def _to_openvino(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    forbid_telemetry()
    import openvino

    failures = openvino.frontend
    with _refusing(failures.OpConversionFailure, failures.GeneralFailure):
        model = openvino.convert_model(graph, example_input=example, input=[-1, *example.shape[1:]])
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    model.outputs[0].get_tensor().set_names({artifact.output_name})
    for name, value in describe_metadata(artifact).items():
        model.set_rt_info(value, ["mnft", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def _to_torchscript(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    with torch.inference_mode(False), torch.no_grad():
        # Unchecked: a second and third run would say less than the comparison on real images.
        traced = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.freeze(traced).save(str(path))


def _to_executorch(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.error import ExportError as Refused

    with _refusing(Refused):
        exported = torch.export.export(graph, (example[:1].clone(),))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _to_coreml(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    import coremltools

    image = example[:1].float() if artifact.embedded else example[:1]
    traced = torch.jit.trace(graph, image, check_trace=False)  # type: ignore[no-untyped-call]
    if artifact.embedded:
        colours = coremltools.colorlayout
        layout = colours.RGB if image.shape[1] == 3 else colours.GRAYSCALE
        given: Any = coremltools.ImageType(name=INPUT_NAME, shape=image.shape, color_layout=layout)
    else:
        given = coremltools.TensorType(name=INPUT_NAME, shape=image.shape)
    model = coremltools.convert(
        traced,
        inputs=[given],
        outputs=[coremltools.TensorType(name=artifact.output_name)],
        minimum_deployment_target=coremltools.target.iOS16,
        convert_to="mlprogram",
    )
    for name, value in describe_metadata(artifact).items():
        model.user_defined_metadata[f"mnft.{name}"] = value
    model.save(str(path))


@contextmanager
def _refusing(*errors: type[Exception]) -> Iterator[None]:
    """The errors of a tool-chain that have no base but Exception."""
    try:
        yield
    except errors as error:
        raise RuntimeError(str(error)) from error


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Artifact, Path], None]] = {
    "onnx": write_onnx,
    "openvino": _to_openvino,
    "torchscript": _to_torchscript,
    "executorch": _to_executorch,
    "coreml": _to_coreml,
}
assert {*_WRITERS, "tflite"} == FORMATS.keys()
