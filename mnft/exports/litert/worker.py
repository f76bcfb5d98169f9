"""Writes a TFLite file; runs with the Python of LiteRT's own environment, not with mnft's.

The request is a JSON file, and so is the answer, because native code writes to stdout as it likes.
What is imported here must work with that environment's older torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnft.errors import ExportError, MnftError
from mnft.exports.artifact import INPUT_NAME
from mnft.exports.graph import build_graph
from mnft.model.bundle import load_bundle

QUANTIZERS = ("none", "dynamic", "int8")
_SIGNATURE = "serving_default"
_PACKAGES = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch", "timm")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be written.

    Attributes:
        model_folder: a folder that `load_bundle` opens.
        target: where to write the TFLite file.
        answer: where to write the facts, or the error, as JSON.
        embed_preprocessing: uint8 pixels in and probabilities out, rather than normalised float32
            and logits.
        quantize: "none"; "dynamic", only the weights in int8; "int8", activations too.
        calibration: for "int8": an .npy file of (N, H, W, C) images as the model takes them.
        keep_float: for "dynamic" and "int8": regular expressions of the tensor names of layers
            that stay in float.
        threads: how many threads calibrate.
    """

    model_folder: str
    target: str
    answer: str
    embed_preprocessing: bool = False
    quantize: str = "none"
    calibration: str | None = None
    keep_float: tuple[str, ...] = ()
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ExportError: an unknown quantizer, or one without calibration images.
        """
        if self.quantize not in QUANTIZERS:
            expected = ", ".join(QUANTIZERS)
            raise ExportError(f"quantize: found {self.quantize!r}, expected one of {expected}")
        if self.quantize == "int8" and self.calibration is None:
            raise ExportError("int8 needs calibration images")


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
        ExportError: unknown or missing keys, values that do not go together.
    """
    known = {field.name for field in fields(Request)}
    if wrong := {*values} - known or {"model_folder", "target", "answer"} - {*values}:
        raise ExportError(f"a request with wrong keys: {', '.join(sorted(wrong))}")
    return Request(**{**values, "keep_float": tuple(values.get("keep_float", ()))})


def write_tflite(request: Request) -> dict[str, Any]:
    """Convert, and quantize where asked.

    Returns:
        Facts: the file's input and output, versions, and the number of int8 tensors.

    Raises:
        CheckpointError: the model folder cannot be opened.
        ExportError: calibration images that do not fit, or nothing was quantized.
    """
    import litert_torch

    torch.set_num_threads(request.threads)
    bundle = load_bundle(Path(request.model_folder))
    embed = request.embed_preprocessing
    graph, example = build_graph(bundle.model, bundle.preprocessing, embed=embed, layout="NHWC")
    example = example[:1].clone()  # a view would be saved with all that it is a view of
    images = _load_images(request, example)
    named = NamedModel(graph, "probabilities" if embed else "logits").eval()
    content = litert_torch.convert(named, sample_kwargs={INPUT_NAME: example}).model_content()
    if request.quantize != "none":
        content = _quantize(bytes(content), request, images)
    Path(request.target).write_bytes(content)
    facts = _inspect(bytes(content))
    if request.quantize != "none" and not facts["int8_tensors"]:
        raise ExportError("LiteRT's quantizer left every layer in float")
    packages = {name: version(name) for name in _PACKAGES}
    kept = ("embed_preprocessing", "quantize", "keep_float")
    asked = {name: value for name, value in asdict(request).items() if name in kept}
    return {**asked, **facts, "calibration_images": len(images), "packages": packages}


def _load_images(request: Request, example: Tensor) -> NDArray[Any]:
    if request.calibration is None:
        return np.empty((0, *example.shape[1:]), np.float32)
    images: NDArray[Any] = np.load(request.calibration, mmap_mode="r", allow_pickle=False)
    expected = example.numpy()
    if images.shape[1:] != expected.shape[1:] or images.dtype != expected.dtype or not len(images):
        raise ExportError(
            f"calibration images are {images.shape} {images.dtype}, expected "
            f"(N, {', '.join(map(str, expected.shape[1:]))}) {expected.dtype}"
        )
    return images


def _quantize(content: bytes, request: Request, images: NDArray[Any]) -> bytes:
    from ai_edge_quantizer import recipe

    if request.quantize == "dynamic":
        quantizer = _build_quantizer(content, recipe.dynamic_wi8_afp32(), request.keep_float)
        return bytes(quantizer.quantize().quantized_model)
    chosen = recipe.static_wi8_ai8()
    quantizer = _build_quantizer(content, chosen, request.keep_float)
    rows = [{INPUT_NAME: np.array(images[i : i + 1])} for i in range(len(images))]
    ranges = quantizer.calibrate({_SIGNATURE: rows}, num_threads=request.threads)
    raised = _raise_weights(content, ranges)
    quantizer = _build_quantizer(raised, chosen, request.keep_float)
    return bytes(quantizer.quantize(ranges).quantized_model)


def _build_quantizer(content: bytes, chosen: Any, keep_float: Sequence[str]) -> Any:
    from ai_edge_quantizer import Quantizer, qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    quantizer = Quantizer(bytearray(content), chosen)
    operation = qtyping.TFLOperationName
    # Its recipe would have apps quantize their images, with a scale from the file.
    floats = [(".*", operation.INPUT), (".*", operation.OUTPUT)]
    floats += [(name, operation.ALL_SUPPORTED) for name in keep_float]
    for name, kind in floats:
        quantizer.update_quantization_recipe(name, kind, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return quantizer


def _raise_weights(content: bytes, ranges: Mapping[str, Any]) -> bytes:
    """Raise weights where a bias would overflow; see `raise_weights`.

    Args:
        content: a TFLite file in float.
        ranges: least and largest value of each tensor, by name.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    changed = bytearray(content)
    model = tfl_flatbuffer_utils.read_model(changed)  # its arrays are views of `changed`
    codes = schema.BuiltinOperator
    channel_axis = {codes.CONV_2D: 0, codes.FULLY_CONNECTED: 0, codes.DEPTHWISE_CONV_2D: -1}
    graph = model.subgraphs[0]
    for op in graph.operators:
        axis = channel_axis.get(model.operatorCodes[op.opcodeIndex].builtinCode)
        if axis is None or len(op.inputs) < 3 or op.inputs[2] < 0:
            continue
        given, kernel, offset = (graph.tensors[index] for index in op.inputs[:3])
        data = [model.buffers[tensor.buffer].data for tensor in (kernel, offset)]
        limits = ranges.get(given.name.decode())
        if limits is None or any(values is None for values in data):
            continue
        scale = np.ptp([0.0, float(np.min(limits["min"])), float(np.max(limits["max"]))]) / 255
        weights, bias = (values.view(np.float32) for values in data)
        raise_weights(np.moveaxis(weights.reshape(kernel.shape), axis, 0), bias, scale)
    return bytes(changed)


def raise_weights(rows: NDArray[Any], bias: NDArray[Any], scale: float) -> None:
    """Raise the first weight of each channel whose bias would overflow in int8, in place.

    A bias is kept as int32 in steps of (scale of the input) x (scale of the channel's weights).
    Where either is nearly zero, as in some squeeze-and-excitation layers of MobileNetV3 with
    weights of 1e-13, the steps are so fine that the bias overflows; the quantizer clips it
    silently, and all images get one class. What is added is at most 2e-5 of the bias.

    Args:
        rows: (channels, ...) float32, a view of the weights.
        bias: (channels,) float32.
        scale: step of the int8 input.
    """
    # Half the range of int32, for rounding.
    least = np.abs(bias) * (127 / 2**30 / max(scale, 1e-9))
    low = np.abs(rows).max(axis=tuple(range(1, rows.ndim))) < least
    rows[(low, *(0,) * (rows.ndim - 1))] = least[low]


def _inspect(content: bytes) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    tensors = interpreter.get_tensor_details()
    return {
        "input": _describe(interpreter.get_input_details()[0]),
        "output": _describe(interpreter.get_output_details()[0]),
        "signature": interpreter.get_signature_list()[_SIGNATURE],
        "tensors": len(tensors),
        "int8_tensors": sum(tensor["dtype"] is np.int8 for tensor in tensors),
        "size_bytes": len(content),
    }


def _describe(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {"shape": [int(n) for n in detail["shape"]], "dtype": np.dtype(detail["dtype"]).name}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
