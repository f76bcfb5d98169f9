"""int8 by NNCF, with its bias correction, as an ONNX or an OpenVINO file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from mnft.compress.quantize.int8 import HeldOutImages, Quantizer
from mnft.compress.quantize.layers import LayerCounts, within
from mnft.errors import ExportError, foreign
from mnft.exports.artifact import INPUT_NAME, Artifact, describe_metadata
from mnft.exports.openvino import read_openvino, save_openvino
from mnft.exports.quiet import forbid_telemetry, quiet

_WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}
_CANNOT = "NNCF cannot quantize this model"
_HINT = "try --set quantize.method=onnxruntime; `mnft -v quantize ...` shows the whole log"


class NncfQuantizer(Quantizer):
    """Writes int8 ONNX files."""

    def write(
        self, path: Path, keep_float: Collection[str] = (), *, thorough: bool = False
    ) -> None:
        """Write a file in int8.

        Args:
            path: the file to write.
            keep_float: layers, or modules that contain layers, that stay in float.
            thorough: correct the biases one after the other, each on what the quantized layers
                before it really give; slower to convert.

        Raises:
            ExportError: NNCF cannot take this model.
        """
        forbid_telemetry()
        with foreign(_CANNOT, ExportError, hint=_HINT), quiet():
            import nncf

            floating = [
                operator
                for node, layer, _ in self._nodes
                if within(layer, keep_float)
                for operator in _operators(node)
            ]
            scope = nncf.IgnoredScope(names=floating, validate=False) if floating else None
            quantized = nncf.quantize(
                self._load(),
                fast_bias_correction=not thorough,
                ignored_scope=scope,
                **self._settings("advanced_parameters"),
            )
            self._save(quantized, path, scope)

    def _settings(self, advanced: str) -> dict[str, Any]:
        """Arguments that NNCF's two functions share; `advanced` is what each calls one of them."""
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
        images = self._calibration.images
        return {
            "calibration_dataset": nncf.Dataset(
                [self._model_input(images[i : i + 1]) for i in range(len(images))]
            ),
            "subset_size": len(images),
            advanced: nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges[self._calibration.method],
                overflow_fix=nncf.OverflowFix.ENABLE if self._calibration.reduce_range else None,
            ),
        }

    def _model_input(self, image: NDArray[Any]) -> Any:
        return {INPUT_NAME: image}

    def _load(self) -> Any:
        import onnx

        return onnx.load(str(self._source))

    def _save(self, model: Any, path: Path, scope: Any) -> None:  # noqa: ARG002
        import onnx

        onnx.save(model, str(path))


class NncfOpenVinoQuantizer(NncfQuantizer):
    """Writes int8 OpenVINO files, and can search for the layers that must stay in float."""

    def write_searching(self, path: Path, held_out: HeldOutImages) -> list[str]:
        """Write a file in int8 in which the layers that lose most stay in float.

        NNCF ranks the layers by the val images that they cost, and returns them to float one by
        one until the figure is back, or `held_out.max_layers` are in float.

        Args:
            path: the file to write.
            held_out: val images, and what may be lost on them.

        Returns:
            The layers that NNCF left in float.

        Raises:
            ExportError: NNCF cannot take this model, or ended its process.
        """
        # In a separate process, because OpenVINO was seen to crash in this one after other attempts
        # (benchmarks/LOG.md).
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(self._write_searching, path, held_out).result()
            except BrokenProcessPool as error:
                raise ExportError(
                    "NNCF ended its process while it looked for layers to leave in float",
                    hint="leave the search out: --set quantize.float_layers=0",
                ) from error

    def _write_searching(self, path: Path, held_out: HeldOutImages) -> list[str]:
        forbid_telemetry()
        with (
            foreign(_CANNOT, ExportError, hint=_HINT),
            quiet(),
            TemporaryDirectory(prefix="mnft-nncf-") as folder,
        ):
            import nncf

            def validate(model: Any, rows: Iterable[Any]) -> tuple[float, list[float]]:
                """The mean rate of a compiled OpenVINO model, and the rate of each image."""
                rates = [held_out.rate(model(image)[0], target) for image, target in rows]
                return sum(rates) / len(rates), rates

            rows = [
                (held_out.images[i : i + 1], target) for i, target in enumerate(held_out.targets)
            ]
            quantized = nncf.quantize_with_accuracy_control(
                self._load(),
                validation_dataset=nncf.Dataset(rows, lambda row: row[0]),
                validation_fn=validate,
                # A fraction of images is not exact in binary: 0.005 of 400 images are two.
                max_drop=held_out.max_accuracy_drop + 1e-9,
                drop_type=nncf.DropType.ABSOLUTE,
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=held_out.max_layers, intermediate_model_dir=folder
                ),
                **self._settings("advanced_quantization_parameters"),
            )
            # NNCF leaves some layers in float from the start; only the others were returned.
            fully_quantized = _read(next(Path(folder).glob("*.xml")))
            returned = _find_floating(quantized) - _find_floating(fully_quantized)
            self._save(quantized, path, nncf.IgnoredScope(names=sorted(returned)))
            return [layer for node, layer, _ in self._nodes if returned & _operators(node)]

    def convert_onnx(self, source: Path, path: Path, artifact: Artifact) -> None:
        """Convert an ONNX file to OpenVINO, with the description of the model in its metadata."""
        model: Any = read_openvino(source)
        for name, value in describe_metadata(artifact).items():
            model.set_rt_info(value, ["mnft", name])
        save_openvino(model, path)

    def count_layers(self, path: Path) -> LayerCounts:
        """Count the layers of an OpenVINO file that have int8 weights."""
        quantized = per_channel = floating = 0
        for _, chain in _find_weights(_read(path)):
            if not _is_int8(chain):
                floating += 1
                continue
            quantized += 1
            scales = [
                link.input_value(1)
                for link in chain
                if link.get_type_name() == "Multiply"
                and not link.input_value(1).get_partial_shape().is_dynamic
            ]
            per_channel += any(math.prod(scale.get_shape()) > 1 for scale in scales)
        return LayerCounts(quantized, per_channel, floating)

    def _model_input(self, image: NDArray[Any]) -> Any:
        return image

    def _load(self) -> Any:
        return read_openvino(self._source)

    def _save(self, model: Any, path: Path, scope: Any) -> None:
        import nncf

        # NNCF leaves squeeze-and-excitation in float, a third of a MobileNetV3. int8 for only its
        # weights costs nothing; in ONNX files onnxruntime refuses what NNCF makes of it.
        mode = nncf.CompressWeightsMode.INT8_SYM
        save_openvino(nncf.compress_weights(model, mode=mode, ignored_scope=scope), path)


def _read(path: Path) -> Any:
    forbid_telemetry()
    import openvino

    return openvino.Core().read_model(path)


def _operators(node: str) -> set[str]:
    """Names of OpenVINO's operators for an ONNX node: a convolution with a bias becomes two."""
    return {node, f"{node}/WithoutBiases"}


def _find_floating(model: Any) -> set[str]:
    """Names of the operators whose weights are in float."""
    return {node.get_friendly_name() for node, chain in _find_weights(model) if not _is_int8(chain)}


def _find_weights(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Operators that have weights, each with the chain of nodes from its weight to the constant."""
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _WEIGHTED:
            continue
        chain = [node.input_value(1).get_node()]
        while chain[-1].get_input_size():
            chain.append(chain[-1].input_value(0).get_node())
        if chain[-1].get_type_name() == "Constant":  # otherwise a product of activations
            yield node, chain


def _is_int8(chain: list[Any]) -> bool:
    # Until the model is written, NNCF keeps the float weights in front of their quantizers.
    if any(link.get_type_name() == "FakeQuantize" for link in chain):
        return True
    return chain[-1].get_element_type().get_type_name() in {"i8", "u8"}
