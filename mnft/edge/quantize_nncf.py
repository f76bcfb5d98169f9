"""int8 by NNCF, with its bias correction, as an OpenVINO or an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mnft.edge.artifact import INPUT_NAME
from mnft.edge.int8 import Calibration, Census, within
from mnft.edge.quantize_onnx import read_layers
from mnft.edge.quiet import forbid_telemetry, quiet
from mnft.errors import ExportError

_WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}
# What NNCF was seen to raise on graphs that it cannot take.
_REFUSED = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError)


class NncfQuantizer:
    """Writes int8 files of one ONNX file.

    Args:
        source: the float file, ONNX.
        calibration: images, and how ranges follow from them.
        form: "openvino" or "onnx", of the files to write.
    """

    def __init__(self, source: Path, calibration: Calibration, form: str) -> None:
        self._source = source
        self._calibration = calibration
        self._form = form
        self._nodes = list(read_layers(source))

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
    ) -> None:
        """Write a file in int8.

        Args:
            path: of the file.
            keep_float: layers, or what they lie in, that stay in float.
            thorough: correct the biases one after the other, on what the layers before really
                give; slower.

        Raises:
            ExportError: NNCF cannot take this model.
        """
        try:
            with quiet():
                self._write(path, keep_float, thorough=thorough)
        except _REFUSED as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                f"NNCF cannot quantize this model: {lines[0][:300]}",
                hint="try --set quantize.method=onnxruntime; `mnft -v quantize ...` shows the "
                "whole log",
            ) from error

    def _write(self, path: Path, keep_float: Collection[str], *, thorough: bool) -> None:
        forbid_telemetry()
        import nncf

        images = self._calibration.images
        rows = [images[i : i + 1] for i in range(len(images))]
        items = [{INPUT_NAME: row} for row in rows] if self._form == "onnx" else rows
        floating = [
            name
            for node, layer, _ in self._nodes
            if within(layer, keep_float)
            # OpenVINO makes two operators of a convolution with a bias.
            for name in (node, f"{node}/WithoutBiases")
        ]
        scope = nncf.IgnoredScope(names=floating, validate=False) if floating else None
        quantized = nncf.quantize(
            self._load(),
            nncf.Dataset(items),
            subset_size=len(rows),
            fast_bias_correction=not thorough,
            ignored_scope=scope,
            advanced_parameters=self._parameters(),
        )
        if self._form == "openvino":
            # NNCF leaves squeeze-and-excitation in float, a third of a MobileNetV3; int8 for its
            # weights alone costs nothing. onnxruntime refuses what NNCF makes of it there.
            quantized = nncf.compress_weights(
                quantized, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=scope
            )
        self._save(quantized, path)

    def _parameters(self) -> Any:
        import nncf
        from nncf.quantization.range_estimator import (
            RangeEstimatorParameters,
            RangeEstimatorParametersSet,
        )

        ranges = {
            "mean": RangeEstimatorParameters(),  # NNCF's own choice
            "minmax": RangeEstimatorParametersSet.MINMAX,
            "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
            "entropy": RangeEstimatorParametersSet.HISTOGRAM,
        }
        return nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges[self._calibration.method],
            overflow_fix=nncf.OverflowFix.ENABLE if self._calibration.reduce_range else None,
        )

    def _load(self) -> Any:
        if self._form == "onnx":
            import onnx

            return onnx.load(str(self._source))
        return read_openvino(self._source)

    def _save(self, model: Any, path: Path) -> None:
        if self._form == "onnx":
            import onnx

            onnx.save(model, str(path))
        else:
            save_openvino(model, path)


def read_openvino(path: Path) -> Any:
    """An ONNX file as an OpenVINO model."""
    forbid_telemetry()
    import openvino

    return openvino.convert_model(path)


def save_openvino(model: Any, path: Path) -> None:
    """Write an OpenVINO model: .xml, with .bin beside it."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)


def take_census(path: Path) -> Census:
    """Which layers of an OpenVINO file have int8 weights."""
    forbid_telemetry()
    import openvino

    quantized = per_channel = floating = 0
    for node in openvino.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() not in _WEIGHTED:
            continue
        chain = list(_weight_chain(node.input_value(1).get_node()))
        if chain[-1].get_type_name() != "Constant":
            continue  # a product of activations
        if chain[-1].get_element_type().get_type_name() not in {"i8", "u8"}:
            floating += 1
            continue
        quantized += 1
        scales = [math.prod(link.input_value(1).get_shape()) for link in chain if _scales(link)]
        per_channel += any(scale > 1 for scale in scales)
    return Census(quantized, per_channel, floating)


def _weight_chain(node: Any) -> Iterator[Any]:
    """A weight and all that is computed of it, back to its constant."""
    yield node
    while node.get_input_size():
        node = node.input_value(0).get_node()
        yield node


def _scales(node: Any) -> bool:
    return (
        node.get_type_name() == "Multiply"
        and not node.input_value(1).get_partial_shape().is_dynamic
    )
