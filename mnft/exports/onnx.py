"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnft.exports.artifact import INPUT_NAME, Artifact, describe_metadata
from mnft.exports.formats import Session

if TYPE_CHECKING:
    from torch import Tensor, nn

_OPSET = 18
LARGEST_BATCH = 4096


def write(
    graph: nn.Module, example: Tensor, artifact: Artifact, path: Path, *, opset: int = _OPSET
) -> None:
    """Write one ONNX file, with class names and preprocessing in its metadata.

    Args:
        graph: the result of `build_graph`, or an exported program.
        example: two images, for tracing.
        artifact: what the file takes and gives.
        path: where to write the ONNX file.
        opset: version of ONNX's operators; int8 needs 21.
    """
    import onnx
    import torch

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
    # torch notes at each operator where it comes from: paths on this machine, and 2% of the size.
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, describe_metadata(artifact))
    onnx.save(model, str(path))


def open(path: Path, threads: int | None) -> Session:
    """Load an ONNX file into ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Session(
        run=lambda images: np.asarray(session.run(None, {INPUT_NAME: images})[0]),
        metadata=session.get_modelmeta().custom_metadata_map,
    )
