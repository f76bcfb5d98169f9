"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnft.exports.artifact import INPUT_NAME, Artifact, describe_metadata

_OPSET = 18


LARGEST_BATCH = 4096


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


class _Onnx:
    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads:
            options.intra_op_num_threads = threads
        self._errors = _find_onnx_errors()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            raise RuntimeError(str(error)) from error
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        try:
            return np.asarray(self._session.run(None, {INPUT_NAME: images})[0])
        except self._errors as error:
            raise RuntimeError(str(error)) from error


def _find_onnx_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own, which have no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return tuple(getattr(state, name) for name in (*names, "NoSuchFile", "RuntimeException"))
