"""int8 by onnxruntime's static quantizer: QuantizeLinear and DequantizeLinear in an ONNX file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mnft.compress.quantize.int8 import Calibration, Quantizer
from mnft.compress.quantize.layers import WEIGHTED, within
from mnft.errors import ExportError, foreign
from mnft.exports.artifact import INPUT_NAME
from mnft.exports.quiet import quiet

# onnxruntime's name, batch size and options of each method. Histograms need all activations of a
# batch in memory; the mean of the images' ranges needs each image by itself.
_METHODS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mean": ("MinMax", 1, {"CalibMovingAverage": True}),
    "minmax": ("MinMax", 8, {}),
    "entropy": ("Entropy", 8, {"CalibStridedMinMax": 1}),
    "percentile": ("Percentile", 8, {"CalibStridedMinMax": 1}),
}
_CANNOT = "onnxruntime cannot quantize this model"
_HINT = "try --set quantize.method=nncf; `mnft -v quantize ...` shows the whole log"


class OnnxRuntimeQuantizer(Quantizer):
    """Writes int8 ONNX files; the activations are calibrated only once.

    Args:
        source: the float file.
        calibration: images, and how ranges follow from them.
        work: a folder for intermediate files; quantizers of one model may share it.
        per_channel: whether each output channel of a weight has its own scale.
    """

    def __init__(
        self, source: Path, calibration: Calibration, work: Path, *, per_channel: bool = True
    ) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = work / "prepared.onnx"
        with foreign(_CANNOT, ExportError, hint=_HINT), quiet():
            quant_pre_process(str(source), str(prepared), skip_optimization=True)
        super().__init__(prepared, calibration)
        self._per_channel = per_channel
        self._work = work

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
            path: the file to write.
            keep_float: layers, or modules that contain layers, that stay in float.
            thorough: quantize only the weights and inputs of layers, not what lies between two of
                them; more exact, and slower in onnxruntime.
            only: layers to quantize, all others stay in float; None quantizes all.

        Raises:
            ExportError: the quantizer cannot take this model.
        """
        from onnxruntime import quantization as ort

        excluded = [
            node
            for node, layer, _ in self._nodes
            if within(layer, keep_float) or (only is not None and not within(layer, only))
        ]
        method, batch_size, options = _METHODS[self._calibration.method]
        if thorough:
            options = {**options, "OpTypesToExcludeOutputQuantization": sorted(WEIGHTED)}
        with foreign(_CANNOT, ExportError, hint=_HINT), quiet():
            ort.quantize_static(
                self._source,
                path,
                _CalibrationReader(self._calibration.images, batch_size),
                quant_format=ort.QuantFormat.QDQ,
                op_types_to_quantize=sorted(WEIGHTED) if thorough else None,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                per_channel=self._per_channel,
                reduce_range=self._calibration.reduce_range,
                calibrate_method=getattr(ort.CalibrationMethod, method),
                nodes_to_exclude=excluded,
                extra_options=options,
                # Later attempts read the ranges again. With `thorough` other operators are
                # calibrated, so there are two files.
                calibration_cache_path=self._work / f"ranges-{thorough}.json",
            )


class _CalibrationReader:
    """Calibration images in batches, in the shape of onnxruntime's CalibrationDataReader."""

    def __init__(self, images: NDArray[Any], batch_size: int) -> None:
        self._images = images
        self._batch_size = batch_size
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, or None."""
        return next(self._batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Start again with some of the batches; onnxruntime calls it for histograms."""
        starts = [i * self._batch_size for i in range(start_index, end_index)]
        self._batches = iter([{INPUT_NAME: self._images[i : i + self._batch_size]} for i in starts])
