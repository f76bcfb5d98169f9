"""Writes a TFLite file; runs with the Python of LiteRT's own environment, not with mnft's.

The request is a JSON file, and so is the answer, because native code writes to stdout as it likes.
What is imported here must work with that environment's older torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mnft.errors import ExportError, MnftError
from mnft.exports.artifact import INPUT_NAME
from mnft.exports.graph import build_graph
from mnft.model.bundle import load_bundle
from mnft.tasks import load_activation
from mnft.tasks.folding import fold_temperature

_SIGNATURE = "serving_default"
_PACKAGES = ("litert-torch", "ai-edge-litert", "torch", "timm")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be written.

    Attributes:
        model_folder: a folder that `load_bundle` opens.
        target: where to write the TFLite file.
        answer: where to write the facts, or the error, as JSON.
        embed_preprocessing: whether normalisation and the task's activation go into the file.
    """

    model_folder: str
    target: str
    answer: str
    embed_preprocessing: bool = False


class NamedModel(nn.Module):
    """A network whose input and output have names, which apps ask for.

    Args:
        network: one tensor to one tensor.
        output: name of the output; the input's name is `image`.
    """

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network = network  # not "graph": torch.export keeps its own under that name
        self.output = output

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """From (1, H, W, C) to (1, K)."""
        return {self.output: self.network(image)}


def main(request_file: str) -> int:
    """Do what a request file asks; returns the exit code.

    An MnftError goes into the answer, to be shown as it is; a bug keeps its traceback.
    """
    values = json.loads(Path(request_file).read_text(encoding="utf-8"))
    try:
        answer, code = write_tflite(read_request(values)), 0
    except MnftError as error:
        answer, code = {"error": error.message, "hint": error.hint}, 1
    Path(values["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return code


def read_request(values: Mapping[str, Any]) -> Request:
    """Check a request.

    Raises:
        ExportError: unknown or missing keys.
    """
    known = {field.name for field in fields(Request)}
    if wrong := {*values} - known or {"model_folder", "target", "answer"} - {*values}:
        raise ExportError(f"a request with wrong keys: {', '.join(sorted(wrong))}")
    return Request(**values)


def write_tflite(request: Request) -> dict[str, Any]:
    """Convert a model.

    Returns:
        Facts: the file's input and output, and versions.

    Raises:
        CheckpointError: the model folder cannot be opened.
    """
    import litert_torch

    bundle = fold_temperature(load_bundle(Path(request.model_folder)))
    embed, activation = request.embed_preprocessing, load_activation(bundle.task)
    graph, example = build_graph(
        bundle.model,
        bundle.preprocessing,
        activation.apply if embed else None,
        layout="NHWC",
    )
    example = example[:1].clone()  # a view would be saved with all that it is a view of
    named = NamedModel(graph, activation.name if embed else activation.outputs).eval()
    content = litert_torch.convert(named, sample_kwargs={INPUT_NAME: example}).model_content()
    Path(request.target).write_bytes(content)
    packages = {name: version(name) for name in _PACKAGES}
    return {"embed_preprocessing": embed, **_inspect(bytes(content)), "packages": packages}


def _inspect(content: bytes) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return {
        "input": _describe(interpreter.get_input_details()[0]),
        "output": _describe(interpreter.get_output_details()[0]),
        "signature": interpreter.get_signature_list()[_SIGNATURE],
        "tensors": len(interpreter.get_tensor_details()),
        "size_bytes": len(content),
    }


def _describe(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {"shape": [int(n) for n in detail["shape"]], "dtype": np.dtype(detail["dtype"]).name}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
