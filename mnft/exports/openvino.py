"""OpenVINO files (`.xml` with `.bin` beside it), run by OpenVINO."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnft import files
from mnft.exports.artifact import INPUT_NAME, METADATA, Artifact, describe_metadata
from mnft.exports.formats import Session
from mnft.exports.quiet import forbid_telemetry

if TYPE_CHECKING:
    from torch import Tensor, nn


def write(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    """Write the .xml and the .bin file, with class names and preprocessing in the .xml."""
    forbid_telemetry()
    import openvino

    model = openvino.convert_model(graph, example_input=example, input=[-1, *example.shape[1:]])
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    model.outputs[0].get_tensor().set_names({artifact.output_name})
    for name, value in describe_metadata(artifact).items():
        model.set_rt_info(value, ["mnft", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def open(path: Path, threads: int | None) -> Session:
    """Compile an OpenVINO file for the CPU."""
    # Its default is bf16 on processors that have it, whose answers differ from the file's.
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    model = _core().read_model(path)
    metadata = {
        name: model.get_rt_info(["mnft", name]).astype(str)
        for name in METADATA
        if model.has_rt_info(["mnft", name])
    }
    compiled = _core().compile_model(model, "CPU", config)
    return Session(run=lambda images: np.array(compiled(images)[0]), metadata=metadata)


@functools.cache
def _core() -> Any:
    """The one `openvino.Core` of this process.

    Each core's CPU plugin sets a stack for signals, and at its end puts back the one before, which
    may be that of a plugin that is gone: the next signal, such as the end of a child process, then
    kills the process (seen with OpenVINO 2026.4).
    """
    forbid_telemetry()
    import openvino

    return openvino.Core()


def read_openvino(path: Path) -> Any:
    """Read an ONNX file as an OpenVINO model."""
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
