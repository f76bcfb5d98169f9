"""A trained model to a file of another format: one function for each tool-chain."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnft.edge.artifact import INPUT_NAME, Artifact
from mnft.edge.formats import FORMATS, Format, check_installed, read_versions
from mnft.edge.graph import build_graph
from mnft.errors import ExportError
from mnft.model.bundle import Bundle

_OPSET = 18
_LARGEST_BATCH = 4096
# What the tool-chains were seen to raise on models that they cannot take.
_REFUSED = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError)


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
    check_installed(form.converter, form.extra, f"{form.title} export")
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
        from mnft.edge import convert_litert

        convert_litert.convert(bundle.folder, folder / form.file, embed_preprocessing=embed)
        return artifact
    graph, example = build_graph(bundle.model, bundle.preprocessing, embed=embed, layout=layout)
    try:
        with _quiet():
            _WRITERS[form.name](graph, example, artifact, folder / form.file)
    except _REFUSED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"{bundle.architecture} cannot be exported to {form.title}: {lines[0][:300]}",
            hint="other formats may take it; `mnft -v export ...` shows the whole log",
        ) from error
    return artifact


def describe_metadata(artifact: Artifact) -> dict[str, str]:
    """Class names and preprocessing for formats whose files carry words."""
    cfg = artifact.preprocessing.as_pretrained_cfg()
    return {
        "architecture": artifact.architecture,
        "class_names": json.dumps(list(artifact.class_names), ensure_ascii=False),
        "preprocessing": json.dumps(cfg),
        "embedded_preprocessing": json.dumps(artifact.embedded),
    }


def _to_onnx(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    import onnx

    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=[artifact.output_name],
        dynamic_shapes=({0: batch},),
        opset_version=_OPSET,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, describe_metadata(artifact))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _to_openvino(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    import openvino

    model = openvino.convert_model(graph, example_input=example, input=[-1, *example.shape[1:]])
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    model.outputs[0].get_tensor().set_names({artifact.output_name})
    for name, value in describe_metadata(artifact).items():
        model.set_rt_info(value, ["mnft", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def _to_torchscript(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    with torch.inference_mode(False), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(graph, example))  # type: ignore[no-untyped-call]
    traced.save(str(path))


def _to_executorch(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(graph, (example[:1].clone(),))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _to_coreml(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    import coremltools

    image = example[:1].float() if artifact.embedded else example[:1]
    traced = torch.jit.trace(graph, image)  # type: ignore[no-untyped-call]
    if artifact.embedded:
        layout = coremltools.colorlayout.RGB if image.shape[1] == 3 else None
        layout = layout or coremltools.colorlayout.GRAYSCALE
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


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Artifact, Path], None]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
    "torchscript": _to_torchscript,
    "executorch": _to_executorch,
    "coreml": _to_coreml,
}
assert {*_WRITERS, "tflite"} == FORMATS.keys()


@contextmanager
def _quiet() -> Iterator[None]:
    """The tool-chains warn of what does not concern the user, and log at length."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
