"""int8 by onnxruntime's static quantizer: QuantizeLinear and DequantizeLinear in an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.compress.quantize.int8 import Calibration, Census, within
from mnft.errors import ExportError
from mnft.exports.artifact import INPUT_NAME
from mnft.exports.quiet import quiet

# onnxruntime's name, images at once, and options. Histograms need all activations of a batch in
# memory; the mean of the images' ranges needs each image for itself.
_METHODS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mean": ("MinMax", 1, {"CalibMovingAverage": True}),
    "minmax": ("MinMax", 8, {}),
    "entropy": ("Entropy", 8, {"CalibStridedMinMax": 1}),
    "percentile": ("Percentile", 8, {"CalibStridedMinMax": 1}),
}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_SCOPES = "pkg.torch.onnx.name_scopes"
# What the quantizer was seen to raise on graphs that it cannot take.
_REFUSED = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError)


class OnnxRuntimeQuantizer:
    """Writes int8 files of one ONNX file; the activations are calibrated once.

    Args:
        source: the float file.
        calibration: images, and how ranges follow from them.
        work: a folder for files in between.
        per_channel: a scale for each output channel of a weight, else one for all of it.
    """

    def __init__(
        self, source: Path, calibration: Calibration, work: Path, *, per_channel: bool = True
    ) -> None:
        self._calibration = calibration
        self._per_channel = per_channel
        self._work = work
        self._prepared = work / "prepared.onnx"
        self._prepare(source)
        self._nodes = list(read_layers(self._prepared))

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights, in the order of the graph."""
        return list(dict.fromkeys(layer for _, layer, weighted in self._nodes if weighted))

    def write(
        self,
        path: Path,
        keep_float: Collection[str] = (),
        *,
        thorough: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        """Write a file in int8.

        Args:
            path: of the file.
            keep_float: layers, or what they lie in, that stay in float.
            thorough: only the weights and inputs of layers, not what lies between two of them;
                more exact, and slower in onnxruntime.
            only: leave all other layers in float.

        Raises:
            ExportError: the quantizer cannot take this model.
        """
        from onnxruntime import quantization as ort

        excluded = [
            node
            for node, layer, _ in self._nodes
            if within(layer, keep_float) or (only is not None and not within(layer, only))
        ]
        options: dict[str, Any] = {}
        if thorough:
            options["OpTypesToExcludeOutputQuantization"] = sorted(_WEIGHTED)
        method, batch, calibrating = _METHODS[self._calibration.method]
        try:
            with quiet():
                ort.quantize_static(
                    self._prepared,
                    path,
                    _Reader(self._calibration.images, batch),
                    quant_format=ort.QuantFormat.QDQ,
                    op_types_to_quantize=sorted(_WEIGHTED) if thorough else None,
                    activation_type=ort.QuantType.QUInt8,
                    weight_type=ort.QuantType.QInt8,
                    per_channel=self._per_channel,
                    reduce_range=self._calibration.reduce_range,
                    calibrate_method=getattr(ort.CalibrationMethod, method),
                    nodes_to_exclude=excluded,
                    extra_options={**options, **calibrating},
                    # Other operators are calibrated otherwise.
                    calibration_cache_path=self._work / f"ranges-{thorough}.json",
                )
        except _REFUSED as error:
            raise _refusal(error) from error

    def _prepare(self, source: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        try:
            with quiet():
                quant_pre_process(str(source), str(self._prepared), skip_optimization=True)
        except _REFUSED as error:
            raise _refusal(error) from error


def take_census(path: Path) -> Census:
    """Which layers of an ONNX file have int8 weights.

    Returns:
        Also whether their scales are per channel.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    int8 = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    dequantized = {
        node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    quantized = per_channel = floating = 0
    for node in model.graph.node:
        if node.op_type not in _WEIGHTED or len(node.input) < 2:
            continue
        source = dequantized.get(node.input[1])
        if source is not None and tensors[source.input[0]].data_type in int8:
            quantized += 1
            per_channel += int(np.prod(tensors[source.input[1]].dims)) > 1
        elif source is not None or node.input[1] in tensors:
            floating += 1
    return Census(quantized, per_channel, floating)


class _Reader:
    """Calibration images as the calibrator asks for them, a batch at a time."""

    def __init__(self, images: NDArray[Any], batch: int) -> None:
        self._images = images
        self._batch = batch
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, or None."""
        return next(self._batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Begin anew with some of the batches."""
        starts = [i * self._batch for i in range(start_index, end_index)]
        self._batches = iter([{INPUT_NAME: self._images[i : i + self._batch]} for i in starts])


def read_layers(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Each node's name, the layer of the torch model that it belongs to, and if it has weights."""
    import onnx

    model = onnx.load(str(path))
    tensors = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        weighted = node.op_type in _WEIGHTED and len(node.input) > 1 and node.input[1] in tensors
        if weighted and node.input[1].endswith(".weight"):
            yield node.name, node.input[1].removesuffix(".weight"), True
        else:
            yield node.name, _scope(node) or node.name, weighted


def _scope(node: Any) -> str:
    """The torch module that a node comes from; empty where the exporter has not noted it."""
    noted = {entry.key: entry.value for entry in node.metadata_props}
    scopes = noted.get(_SCOPES, "[]").replace("'", '"')
    try:
        names = json.loads(scopes)
    except ValueError:
        return ""
    # The last is the operator.
    return str(names[-2]) if isinstance(names, list) and len(names) > 1 else ""


def _refusal(error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ExportError(
        f"onnxruntime cannot quantize this model: {lines[0][:300]}",
        hint="try --set quantize.method=nncf; `mnft -v quantize ...` shows the whole log",
    )
