"""OpenVINO files (`.xml` and `.bin`), run by OpenVINO."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mnft import files
from mnft.exports.artifact import INPUT_NAME, METADATA, Artifact, describe_metadata
from mnft.exports.quiet import _refusing, forbid_telemetry


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


@functools.cache
def get_openvino_core() -> Any:
    """The one `openvino.Core` of this process.

    Each core's CPU plugin sets a stack for signals, and at its end puts back the one before, which
    may be that of a plugin that is gone: the next signal, such as the end of a child process, then
    kills the process (seen with OpenVINO 2026.4).
    """
    forbid_telemetry()
    import openvino

    return openvino.Core()


class _OpenVino:
    def __init__(self, path: Path, threads: int | None) -> None:
        # Its default is bf16 on processors that have it, whose answers differ from the file's.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        model = get_openvino_core().read_model(path)
        self.metadata: Mapping[str, str] = {
            name: model.get_rt_info(["mnft", name]).astype(str)
            for name in METADATA
            if model.has_rt_info(["mnft", name])
        }
        self._model = get_openvino_core().compile_model(model, "CPU", config)

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        return np.array(self._model(images)[0])


def read_openvino(path: Path) -> Any:
    """An ONNX file as an OpenVINO model."""
    forbid_telemetry()
    import openvino

    return openvino.convert_model(path)


def save_openvino(model: Any, path: Path) -> None:
    """Write an OpenVINO model: .xml, with .bin beside it."""
    import openvino

    # OpenVINO maps the weights of a model that it runs: what is there must not be written over.
    for old in (path, path.with_suffix(".bin")):
        old.unlink(missing_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)
    # A fifth of the text is indentation, which is a tenth of a small int8 model.
    files.write_text(path, re.sub(r">\s+<", "><", path.read_text(encoding="utf-8")))
