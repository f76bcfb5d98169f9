"""The formats that models are exported to: their files, what each needs, and what works here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mnft.errors import ConfigError, ExportError
from mnft.host import find_missing

if TYPE_CHECKING:  # none of them is needed to read the table
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mnft.exports.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Session:
    """A model file in its runtime.

    Attributes:
        run: one call of the runtime, from images as the file takes them, (B, ...) float32, or
            uint8 where it normalises them itself, to (B, K) float32; B is 1 for a file that takes
            one image at a time.
        metadata: what the file says of itself, as `describe_metadata`; empty where the format has
            no place for it.
    """

    run: Callable[[NDArray[Any]], NDArray[Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)


class FormatModule(Protocol):
    """What the module of a format has; `open` is missing where mnft cannot run the files."""

    def write(
        self, graph: nn.Module, example: Tensor, artifact: Artifact, path: Path
    ) -> Mapping[str, Any] | None:
        """Write the model file.

        Args:
            graph: the result of `build_graph`.
            example: two images, for tracing.
            artifact: what the file takes and gives.
            path: where to write the file.

        Returns:
            Facts for model.json, if any.
        """

    def open(self, path: Path, threads: int | None) -> Session:
        """Load the model file into its runtime.

        Args:
            path: the model file.
            threads: how many threads the runtime computes with; None leaves it to the runtime.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One export format.

    Attributes:
        name: value of `--format`.
        title: name in messages.
        file: name of the model file.
        weights_suffix: extension of a second file, which holds the weights; empty for none.
        module: module in this package that writes and opens the files.
        converter: packages that write the files.
        runtime: packages that run the files; None where mnft cannot run them.
        extra: mnft's extra with these packages; empty where the core has them.
        own_environment: whether the converter needs a Python environment of its own.
        layout: layout of the input, "NCHW" or "NHWC".
        embedded_layout: the same for a file that takes pixels: cameras and decoders give (H, W, C).
        dynamic_batch: whether a file takes any number of images at once.
        precision: arithmetic of the file, "fp32" or "fp16".
    """

    name: str
    title: str
    file: str
    weights_suffix: str = ""
    module: str
    converter: tuple[str, ...] = ()
    runtime: tuple[str, ...] | None = ()
    extra: str = ""
    own_environment: bool = False
    layout: str = "NCHW"
    embedded_layout: str = "NHWC"
    dynamic_batch: bool = True
    precision: str = "fp32"

    def load_module(self) -> FormatModule:
        """Import the module, which imports its packages only in its functions."""
        return cast(FormatModule, importlib.import_module(f"mnft.exports.{self.module}"))


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format(
            name="onnx",
            title="ONNX",
            file="model.onnx",
            module="onnx",
            converter=("onnx", "onnxscript"),
            runtime=("onnxruntime",),
            extra="onnx",
        ),
        Format(
            name="openvino",
            title="OpenVINO",
            file="model.xml",
            weights_suffix=".bin",
            module="openvino",
            converter=("openvino",),
            runtime=("openvino",),
            extra="openvino",
        ),
        Format(
            name="executorch",
            title="ExecuTorch",
            file="model.pte",
            module="executorch",
            converter=("executorch",),
            runtime=("executorch",),
            extra="executorch",
            dynamic_batch=False,
        ),
        Format(
            name="tflite",
            title="LiteRT (TensorFlow Lite)",
            file="model.tflite",
            module="litert.tflite",
            runtime=("ai-edge-litert",),
            extra="litert",
            own_environment=True,
            layout="NHWC",
            dynamic_batch=False,
        ),
        Format(name="torchscript", title="TorchScript", file="model.pt", module="torchscript"),
        Format(
            name="coreml",
            title="Core ML",
            file="model.mlpackage",
            module="coreml",
            converter=("coremltools",),
            runtime=None,  # macOS only
            extra="coreml",
            embedded_layout="NCHW",  # Core ML has a type for images
            dynamic_batch=False,
            precision="fp16",
        ),
    )
}


def find_format(name: str) -> Format:
    """Look a format up by its name.

    Raises:
        ConfigError: no format has this name.
    """
    if name not in FORMATS:
        close = difflib.get_close_matches(name.lower(), FORMATS, 1)
        raise ConfigError(
            f"--format: found {name!r}, expected one of {', '.join(FORMATS)}",
            hint=f"did you mean {close[0]}?" if close else None,
        )
    return FORMATS[name]


def check_installed(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Refuse work whose packages are missing.

    Args:
        packages: names of distributions.
        extra: mnft's extra with these packages.
        what: the work, for the message, such as "ONNX export".

    Raises:
        ExportError: with the command that installs them.
    """
    if missing := find_missing(packages):
        raise ExportError(
            f"{what} needs {', '.join(missing)}, which is not installed",
            hint=f"pip install 'mnft[{extra}]'",
        )
