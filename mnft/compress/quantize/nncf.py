"""int8 by NNCF, with its bias correction, as an OpenVINO or an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from mnft.compress.quantize.int8 import Calibration, Census, Control, within
from mnft.compress.quantize.onnxruntime import read_layers
from mnft.errors import ExportError
from mnft.exports.artifact import INPUT_NAME
from mnft.exports.openvino import read_openvino, save_openvino
from mnft.exports.quiet import forbid_telemetry, quiet

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

    @property
    def can_be_controlled(self) -> bool:
        """Whether `write_controlled` works: it judges compiled models of OpenVINO alone."""
        return self._form == "openvino"

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
        with self._explaining():
            import nncf

            scope = self._ignore(keep_float)
            quantized = nncf.quantize(
                self._load(),
                fast_bias_correction=not thorough,
                ignored_scope=scope,
                **self._settings(),
            )
            self._save(quantized, path, scope)

    def write_controlled(self, path: Path, control: Control) -> list[str]:
        """Write a file in int8 whose layers that lose most stay in float, found by NNCF.

        NNCF ranks the layers by the val images that they cost, and returns them to float one by
        one until the accuracy is back, or `control.max_layers` are.

        Args:
            path: of the file.
            control: val images, and what may be lost on them.

        Returns:
            The layers that it left in float.

        Raises:
            ExportError: NNCF cannot take this model, or ended its process.
        """
        # In a process of its own: in this one OpenVINO was seen to crash after other attempts.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(self._write_controlled, path, control).result()
            except BrokenProcessPool as error:
                raise ExportError(
                    "NNCF ended its process while it looked for layers to leave in float",
                    hint="leave the search out: --set quantize.float_layers=0",
                ) from error

    def _write_controlled(self, path: Path, control: Control) -> list[str]:
        with self._explaining(), TemporaryDirectory(prefix="mnft-nncf-") as plain:
            import nncf

            rows = [(control.images[i : i + 1], target) for i, target in enumerate(control.targets)]
            quantized = nncf.quantize_with_accuracy_control(
                self._load(),
                validation_dataset=nncf.Dataset(rows, lambda row: row[0]),
                validation_fn=_count_hits,
                # A share of images is not exact in binary: 0.005 of 400 images are two.
                max_drop=control.max_accuracy_drop + 1e-9,
                drop_type=nncf.DropType.ABSOLUTE,
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=control.max_layers, intermediate_model_dir=plain
                ),
                **self._settings("advanced_quantization_parameters"),
            )
            always = _find_floating(_read(next(Path(plain).glob("*.xml"))))
            returned = _find_floating(quantized) - always
            self._save(quantized, path, nncf.IgnoredScope(names=sorted(returned)))
            return [layer for node, layer, _ in self._nodes if returned & _operators(node)]

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Silence NNCF, and say in one line what it refused."""
        forbid_telemetry()
        try:
            with quiet():
                yield
        except _REFUSED as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                f"NNCF cannot quantize this model: {lines[0][:300]}",
                hint="try --set quantize.method=onnxruntime; `mnft -v quantize ...` shows the "
                "whole log",
            ) from error

    def _settings(self, advanced: str = "advanced_parameters") -> dict[str, Any]:
        """What NNCF's two functions share; one thing is called differently in each."""
        import nncf

        images = self._calibration.images
        rows = [images[i : i + 1] for i in range(len(images))]
        items = [{INPUT_NAME: row} for row in rows] if self._form == "onnx" else rows
        return {
            "calibration_dataset": nncf.Dataset(items),
            "subset_size": len(rows),
            advanced: self._parameters(),
        }

    def _ignore(self, keep_float: Collection[str]) -> Any:
        import nncf

        floating = [
            name
            for node, layer, _ in self._nodes
            if within(layer, keep_float)
            for name in _operators(node)
        ]
        return nncf.IgnoredScope(names=floating, validate=False) if floating else None

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

    def _save(self, model: Any, path: Path, scope: Any) -> None:
        if self._form == "onnx":
            import onnx

            onnx.save(model, str(path))
            return
        import nncf

        # NNCF leaves squeeze-and-excitation in float, a third of a MobileNetV3; int8 for its
        # weights alone costs nothing. onnxruntime refuses what NNCF makes of it there.
        mode = nncf.CompressWeightsMode.INT8_SYM
        save_openvino(nncf.compress_weights(model, mode=mode, ignored_scope=scope), path)


def _count_hits(model: Any, rows: Iterable[tuple[NDArray[Any], int]]) -> tuple[float, list[float]]:
    """The accuracy of a compiled OpenVINO model, and which images it got right."""
    hits = [float(model(image)[0].argmax() == target) for image, target in rows]
    return sum(hits) / len(hits), hits


def take_census(path: Path) -> Census:
    """Which layers of an OpenVINO file have int8 weights."""
    quantized = per_channel = floating = 0
    for _, chain in _find_weights(_read(path)):
        if not _is_int8(chain):
            floating += 1
            continue
        quantized += 1
        scales = [math.prod(link.input_value(1).get_shape()) for link in chain if _scales(link)]
        per_channel += any(scale > 1 for scale in scales)
    return Census(quantized, per_channel, floating)


def _read(path: Path) -> Any:
    forbid_telemetry()
    import openvino

    return openvino.Core().read_model(path)


def _operators(node: str) -> set[str]:
    """What OpenVINO makes of a node of ONNX: two operators of a convolution with a bias."""
    return {node, f"{node}/WithoutBiases"}


def _find_floating(model: Any) -> set[str]:
    """Names of the operators whose weights are in float."""
    return {node.get_friendly_name() for node, chain in _find_weights(model) if not _is_int8(chain)}


def _find_weights(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Operators that have weights, each with all that its weights are computed of."""
    for node in model.get_ordered_ops():
        if node.get_type_name() in _WEIGHTED:
            chain = list(_weight_chain(node.input_value(1).get_node()))
            if chain[-1].get_type_name() == "Constant":  # else a product of activations
                yield node, chain


def _is_int8(chain: list[Any]) -> bool:
    # Until the model is written, NNCF keeps the float weights in front of their quantizers.
    if any(link.get_type_name() == "FakeQuantize" for link in chain):
        return True
    return chain[-1].get_element_type().get_type_name() in {"i8", "u8"}


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
