"""The formats that models are exported to: their files, what each needs, and what works here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from mnft.errors import ConfigError, ExportError
from mnft.host import find_missing


@dataclass(frozen=True, slots=True)
class Format:
    """One export format.

    Attributes:
        name: what `--format` takes.
        file: name of the model file.
        title: for people.
        converter: packages that write it.
        runtime: packages that run it; None where mnft cannot run it (Core ML runs on macOS only).
        extra: of mnft, that brings them; empty where the core has them.
        layout: of the input, "NCHW" or "NHWC".
        dynamic_batch: whether a file takes any number of images at once.
    """

    name: str
    file: str
    title: str
    converter: tuple[str, ...]
    runtime: tuple[str, ...] | None
    extra: str = ""
    layout: str = "NCHW"
    dynamic_batch: bool = True


FORMATS = {
    f.name: f
    for f in (
        Format(
            "onnx", "model.onnx", "ONNX", ("onnx", "onnxscript"), ("onnxruntime",), extra="onnx"
        ),
        Format("openvino", "model.xml", "OpenVINO", ("openvino",), ("openvino",), extra="openvino"),
        Format(
            "executorch",
            "model.pte",
            "ExecuTorch",
            ("executorch",),
            ("executorch",),
            extra="executorch",
            dynamic_batch=False,
        ),
        Format(
            "tflite",
            "model.tflite",
            "LiteRT (TensorFlow Lite)",
            (),  # in an environment of its own: edge.litert_environment
            ("ai-edge-litert",),
            extra="litert",
            layout="NHWC",
            dynamic_batch=False,
        ),
        Format("torchscript", "model.pt", "TorchScript", (), ()),
        Format(
            "coreml",
            "model.mlpackage",
            "Core ML",
            ("coremltools",),
            None,
            extra="coreml",
            dynamic_batch=False,
        ),
    )
}


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: no format has it.
    """
    if name not in FORMATS:
        close = difflib.get_close_matches(name.lower(), FORMATS, 1)
        raise ConfigError(
            f"--format: found {name!r}, expected one of {', '.join(FORMATS)}",
            hint=f"did you mean {close[0]}?" if close else None,
        )
    return FORMATS[name]


def check_installed(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Refuse work whose packages are not there.

    Args:
        packages: names of distributions.
        extra: of mnft, that brings them.
        what: for the message, such as "ONNX export".

    Raises:
        ExportError: with the command that installs them.
    """
    if missing := find_missing(packages):
        raise ExportError(
            f"{what} needs {', '.join(missing)}, which is not installed",
            hint=f"pip install 'mnft[{extra}]'",
        )


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself, as `describe_metadata`; empty where it says nothing."""

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """One call of the runtime.

        Args:
            images: as the file takes them: (B, ...) float32, or uint8 where it normalises itself;
                B is 1 for a file of one image at a time.

        Returns:
            (B, K) float32.
        """
