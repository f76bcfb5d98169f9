"""The ways to int8, and the order in which they are tried until one keeps the accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mnft.compress.quantize import nncf as quantize_nncf
from mnft.compress.quantize import onnxruntime as quantize_onnx
from mnft.compress.quantize.int8 import Calibration, Census, Control, Quantizer, check_layers
from mnft.compress.quantize.sensitivity import choose_counts, rank_layers
from mnft.config.edge import QuantizeConfig
from mnft.exports.artifact import Artifact, describe_metadata
from mnft.exports.convert import convert
from mnft.exports.formats import FORMATS, Format, check_installed
from mnft.exports.openvino import read_openvino, save_openvino
from mnft.host import find_missing, read_versions
from mnft.model.bundle import Bundle
from mnft.reporter import SILENT, Reporter
from mnft.text import count

_RANKING_IMAGES = 32
# Measured: NNCF loses least on MobileNetV2 and V3, and OpenVINO is faster in int8 on
# both; onnxruntime is slower on V3.
_PREFERRED, _PORTABLE = "nncf", "onnxruntime"


@dataclass(frozen=True, slots=True)
class Method:
    """A way to int8.

    Attributes:
        name: of the config.
        title: for people.
        format: of the file that comes out.
        packages: that it needs.
        extra: of mnft, that brings them.
        suffix: of the folder's name.
    """

    name: str
    title: str
    format: Format
    packages: tuple[str, ...]
    extra: str
    suffix: str = ""


_ONNX = ("onnx", "onnxscript", "onnxruntime")
METHODS = {
    m.name: m
    for m in (
        Method("onnxruntime", "onnxruntime, per channel", FORMATS["onnx"], _ONNX, "onnx"),
        Method(
            "per_tensor",
            "onnxruntime, per tensor",
            FORMATS["onnx"],
            _ONNX,
            "onnx",
            suffix="-per-tensor",
        ),
        Method("nncf", "NNCF", FORMATS["openvino"], (*_ONNX, "openvino", "nncf"), "onnx,openvino"),
        Method(
            "nncf_onnx",
            "NNCF",
            FORMATS["onnx"],
            (*_ONNX, "nncf"),
            "onnx,openvino",
            suffix="-nncf",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to write the file.

    Attributes:
        title: for people.
        keep_float: layers, or what they lie in, that it leaves in float.
        write: writes the file; gives the layers in float where it finds them itself.
    """

    title: str
    keep_float: tuple[str, ...]
    write: Callable[[Path], Sequence[str] | None]


def choose_method(config: QuantizeConfig) -> Method:
    """The method that the config asks for, or the best that is installed.

    Raises:
        ExportError: its packages are not installed.
    """
    name: str = config.method
    if name == "auto":
        name = _PORTABLE if find_missing(METHODS[_PREFERRED].packages) else _PREFERRED
    method = METHODS[name]
    check_installed(method.packages, method.extra, f"quantization by {method.title}")
    return method


def find_versions(method: Method) -> dict[str, str]:
    """Of the packages that had a part in the file."""
    return read_versions(("torch", "torchao", *method.packages))


class Workshop:
    """A trained model in float, and all that is needed to bring it to int8.

    Args:
        bundle: the trained model.
        method: how.
        calibration: images.
        work: a folder for files in between.

    Attributes:
        float_folder: holds the float file in the format that will come out.
        artifact: what the int8 file takes and gives.
    """

    def __init__(self, bundle: Bundle, method: Method, calibration: Calibration, work: Path):
        self.method = method
        self._calibration = calibration
        self._work = work
        self._onnx = work / "float-onnx"
        self._onnx.mkdir()
        self._onnx_artifact = convert(bundle, FORMATS["onnx"], self._onnx, embed=False)
        self.float_folder = self._onnx
        float_artifact = self._onnx_artifact
        if method.format.name == "openvino":
            self.float_folder = work / "float-openvino"
            self.float_folder.mkdir()
            float_artifact = replace(self._onnx_artifact, format="openvino", file="model.xml")
            self._to_openvino(self._source, self.float_folder / float_artifact.file)
        self.float_artifact = float_artifact
        self.artifact = replace(float_artifact, precision="int8")
        self._quantizer = self._build_quantizer()

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights."""
        return self._quantizer.layers

    @property
    def onnx_artifact(self) -> Artifact:
        """What an ONNX file of the model takes and gives."""
        return self._onnx_artifact

    def plan(
        self,
        config: QuantizeConfig,
        *,
        fine_tune: Callable[[Path], None] | None,
        control: Callable[[], Control],
        reporter: Reporter = SILENT,
    ) -> Iterator[Attempt]:
        """The attempts, the cheapest and fastest first; each is made only if the last failed.

        Args:
            config: of the user.
            fine_tune: writes an ONNX file by quantization-aware fine-tuning; None leaves it out.
            control: gives val images, for a search of the layers that must stay in float.
            reporter: told how far long work is.

        Raises:
            ConfigError: `keep_float` names no layer.
        """
        keep = tuple(config.keep_float or ())
        check_layers(keep, self.layers)
        if config.qat != "always":
            yield self._attempt("post-training quantization", keep)
        if self.method.name == "per_tensor":
            return
        if config.qat != "always":
            yield self._attempt("more exact", keep, thorough=True)
            if config.keep_float is None and config.float_layers:
                yield from self._leave_float(config.float_layers, control, reporter)
        if fine_tune is not None:
            yield Attempt("quantization-aware fine-tuning", keep, partial(self._tune, fine_tune))

    def take_census(self, path: Path) -> Census:
        """Which layers of a file are in int8."""
        if self.method.format.name == "openvino":
            return quantize_nncf.take_census(path)
        return quantize_onnx.take_census(path)

    @property
    def _source(self) -> Path:
        return self._onnx / self._onnx_artifact.file

    def _build_quantizer(self) -> Quantizer:
        if self.method.name in {"nncf", "nncf_onnx"}:
            return quantize_nncf.NncfQuantizer(
                self._source, self._calibration, self.method.format.name
            )
        return self._build_onnxruntime(per_channel=self.method.name != "per_tensor")

    def _build_onnxruntime(self, *, per_channel: bool) -> quantize_onnx.OnnxRuntimeQuantizer:
        return quantize_onnx.OnnxRuntimeQuantizer(
            self._source, self._calibration, self._work, per_channel=per_channel
        )

    def _attempt(self, title: str, keep: tuple[str, ...], *, thorough: bool = False) -> Attempt:
        write = partial(self._quantizer.write, keep_float=keep, thorough=thorough)
        return Attempt(title, keep, write)

    def _leave_float(
        self,
        largest: int,
        control: Callable[[], Control],
        reporter: Reporter,
    ) -> Iterator[Attempt]:
        quantizer = self._quantizer
        if isinstance(quantizer, quantize_nncf.NncfQuantizer) and quantizer.can_be_controlled:

            def write(path: Path) -> Sequence[str]:
                return quantizer.write_controlled(path, control())

            yield Attempt(f"up to {count(largest, 'layer')} in float, found by NNCF", (), write)
            return
        counts = choose_counts(largest, len(self.layers))
        if not counts:
            return
        # Layers have the same names whatever quantizes them, and onnxruntime is quick.
        ranking = self._quantizer
        if not isinstance(ranking, quantize_onnx.OnnxRuntimeQuantizer):
            ranking = self._build_onnxruntime(per_channel=True)
        images = self._calibration.images
        with reporter.track("ranking layers by what int8 costs") as on_progress:
            ranked = rank_layers(
                ranking,
                self._onnx_artifact,
                self._source,
                images[:: max(1, len(images) // _RANKING_IMAGES)],
                self._work,
                on_progress=on_progress,
            )
        for number in counts:
            worst = tuple(layer for layer, _ in ranked[:number])
            yield self._attempt(f"{count(number, 'layer')} in float", worst, thorough=True)

    def _tune(self, fine_tune: Callable[[Path], None], path: Path) -> None:
        if self.method.format.name == "onnx":
            fine_tune(path)
            return
        between = self._work / "tuned.onnx"
        fine_tune(between)
        self._to_openvino(between, path)

    def _to_openvino(self, source: Path, path: Path) -> None:
        model: Any = read_openvino(source)
        for name, value in describe_metadata(self._onnx_artifact).items():
            model.set_rt_info(value, ["mnft", name])
        save_openvino(model, path)
