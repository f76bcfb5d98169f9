"""TFLite files: written by a worker in a Python environment of its own, run by LiteRT."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnft.exports.artifact import Artifact
from mnft.exports.formats import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn


def write(_graph: nn.Module, _example: Tensor, artifact: Artifact, path: Path) -> dict[str, Any]:
    """Write a file for one image at a time; the worker opens the model folder by itself."""
    from mnft.exports.litert.convert import convert_to_litert

    model_folder = Path(artifact.source["folder"])
    facts = convert_to_litert(model_folder, path, embed_preprocessing=artifact.embedded)
    return {"litert": facts}


def open(path: Path, threads: int | None) -> Session:
    """Load a file into LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count())
    interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]

    def run(images: NDArray[Any]) -> NDArray[Any]:
        interpreter.set_tensor(input_index, images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output_index))

    return Session(run)
