"""The methods of int8 quantization, and the attempts of each, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mnft.compress.quantize.int8 import Calibration, HeldOutImages, Quantizer
from mnft.compress.quantize.layers import LayerCounts, check_names
from mnft.compress.quantize.nncf import NncfOpenVinoQuantizer, NncfQuantizer
from mnft.compress.quantize.onnxruntime import OnnxRuntimeQuantizer
from mnft.compress.quantize.sensitivity import choose_counts, rank_layers
from mnft.config.edge import QuantizeConfig
from mnft.exports.convert import convert
from mnft.exports.formats import FORMATS, Format, check_installed
from mnft.host import find_missing
from mnft.model.bundle import Bundle
from mnft.reporter import Reporter
from mnft.text import count

_RANKING_IMAGES = 32
# Measured: NNCF loses least on MobileNetV2 and V3, and OpenVINO is faster in int8 than in float on
# both; ONNX Runtime is slower on V3 (docs/smaller.md).
PREFERRED, _PORTABLE = "nncf", "onnxruntime"


@dataclass(frozen=True, slots=True)
class Method:
    """A method of int8 quantization.

    Attributes:
        name: the value of `quantize.method` that chooses it.
        title: name in messages.
        format: the format of the files that it writes.
        packages: the packages that it needs.
        extra: the extras of mnft that install them.
        quantizer: opens a float ONNX file; it takes the file, the calibration and a folder for
            intermediate files.
        suffix: the end of the export folder's name, where two methods write the same format.
        per_channel: whether each output channel of a weight has its own scale.
    """

    name: str
    title: str
    format: Format
    packages: tuple[str, ...]
    extra: str
    quantizer: Callable[[Path, Calibration, Path], Quantizer]
    suffix: str = ""
    per_channel: bool = True


_ONNX = ("onnx", "onnxscript", "onnxruntime")
METHODS = {
    method.name: method
    for method in (
        Method(
            "onnxruntime",
            "onnxruntime, per channel",
            FORMATS["onnx"],
            _ONNX,
            "onnx",
            OnnxRuntimeQuantizer,
        ),
        Method(
            "per_tensor",
            "onnxruntime, per tensor",
            FORMATS["onnx"],
            _ONNX,
            "onnx",
            partial(OnnxRuntimeQuantizer, per_channel=False),
            suffix="-per-tensor",
            per_channel=False,
        ),
        Method(
            "nncf",
            "NNCF",
            FORMATS["openvino"],
            (*_ONNX, "openvino", "nncf"),
            "onnx,openvino",
            lambda source, calibration, _work: NncfOpenVinoQuantizer(source, calibration),
        ),
        Method(
            "nncf_onnx",
            "NNCF",
            FORMATS["onnx"],
            (*_ONNX, "nncf"),
            "onnx,openvino",
            lambda source, calibration, _work: NncfQuantizer(source, calibration),
            suffix="-nncf",
        ),
    )
}


def choose_method(config: QuantizeConfig) -> Method:
    """The method that the config asks for; for `auto` the best one that is installed.

    Raises:
        ExportError: its packages are not installed.
    """
    name: str = config.method
    if name == "auto":
        name = _PORTABLE if find_missing(METHODS[PREFERRED].packages) else PREFERRED
    method = METHODS[name]
    check_installed(method.packages, method.extra, f"quantization by {method.title}")
    return method


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to write the int8 file; nothing is written before it is tried.

    Attributes:
        title: name in messages and in quantization.json.
        keep_float: layers, or modules that contain layers, that it leaves in float.
        write: writes the file; returns the layers left in float if it chose them itself.
    """

    title: str
    keep_float: tuple[str, ...]
    write: Callable[[Path], Sequence[str] | None]


class Int8Builder:
    """A trained model as a float file, and all that is needed to write it in int8.

    Args:
        bundle: the trained model.
        method: the method of quantization.
        calibration: images, and how ranges follow from them.
        work: an empty folder for intermediate files.

    Attributes:
        onnx_artifact: the description of the model as a float ONNX file.
        float_artifact: the description of the float file in the method's format.
        float_folder: the folder of that file.
        artifact: the description of the int8 file.
    """

    def __init__(self, bundle: Bundle, method: Method, calibration: Calibration, work: Path):
        self._method = method
        self._calibration = calibration
        self._work = work
        # Every method starts from one ONNX file: the layers have the same names in all of them.
        (work / "onnx").mkdir()
        self.onnx_artifact = convert(bundle, FORMATS["onnx"], work / "onnx", embed=False)
        self._onnx_file = work / "onnx" / self.onnx_artifact.file
        self._quantizer = method.quantizer(self._onnx_file, calibration, work)
        # int8 is compared with float in its own format: accuracy, size and latency.
        self.float_folder = work / "float"
        self.float_folder.mkdir()
        self.float_artifact = replace(
            self.onnx_artifact, format=method.format.name, file=method.format.file
        )
        self._convert_onnx(self._onnx_file, self.float_folder / self.float_artifact.file)
        self.artifact = replace(self.float_artifact, precision="int8")

    def plan(
        self,
        config: QuantizeConfig,
        *,
        fine_tune: Callable[[Path], None] | None,
        held_out: Callable[[], HeldOutImages],
        reporter: Reporter,
    ) -> Iterator[Attempt]:
        """The attempts, the cheapest and fastest first; ask for the next only if one failed.

        Args:
            config: the user's settings.
            fine_tune: writes an ONNX file by quantization-aware fine-tuning; None leaves it out.
            held_out: reads val images, for a search of the layers that must stay in float.
            reporter: receives the progress of long work.

        Raises:
            ConfigError: `keep_float` has a name that no layer has.
        """
        keep_float = tuple(config.keep_float or ())
        check_names(keep_float, self._quantizer.layers)
        # One scale for a whole weight is for comparison only, so nothing is tried to improve it.
        if not self._method.per_channel:
            yield self._attempt("post-training quantization", keep_float)
            return
        if config.qat != "always":
            yield self._attempt("post-training quantization", keep_float)
            yield self._attempt("more exact", keep_float, thorough=True)
            # Where the user has named layers, none are searched for.
            if config.keep_float is None and config.float_layers:
                yield from self._leave_layers_in_float(config.float_layers, held_out, reporter)
        if fine_tune is not None:

            def write_tuned(path: Path) -> None:
                tuned = self._work / "tuned.onnx"
                fine_tune(tuned)
                self._convert_onnx(tuned, path)

            yield Attempt("quantization-aware fine-tuning", keep_float, write_tuned)

    def count_layers(self, path: Path) -> LayerCounts:
        """Count the layers of a written file that have int8 weights."""
        return self._quantizer.count_layers(path)

    def _convert_onnx(self, source: Path, path: Path) -> None:
        self._quantizer.convert_onnx(source, path, self.onnx_artifact)

    def _attempt(
        self, title: str, keep_float: tuple[str, ...], *, thorough: bool = False
    ) -> Attempt:
        write = partial(self._quantizer.write, keep_float=keep_float, thorough=thorough)
        return Attempt(title, keep_float, write)

    def _leave_layers_in_float(
        self, largest: int, held_out: Callable[[], HeldOutImages], reporter: Reporter
    ) -> Iterator[Attempt]:
        """Attempts that leave the layers that lose most in float, `largest` of them at most."""
        quantizer = self._quantizer
        if isinstance(quantizer, NncfOpenVinoQuantizer):
            yield Attempt(
                f"up to {count(largest, 'layer')} in float, found by NNCF",
                (),
                lambda path: quantizer.write_searching(path, held_out()),
            )
            return
        counts = choose_counts(largest, len(quantizer.layers))
        if not counts:
            return
        # onnxruntime ranks them for every method: it is quick, and layers are named alike in all.
        images = self._calibration.images
        ranked = rank_layers(
            OnnxRuntimeQuantizer(self._onnx_file, self._calibration, self._work),
            self._onnx_file,
            self.onnx_artifact,
            images[:: max(1, len(images) // _RANKING_IMAGES)],
            self._work,
            reporter,
        )
        for number in counts:
            worst = tuple(layer for layer, _ in ranked[:number])
            yield self._attempt(f"{count(number, 'layer')} in float", worst, thorough=True)
