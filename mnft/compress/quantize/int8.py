"""What all methods of int8 quantization share: calibration, held-out images, the base class."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mnft.compress.quantize.layers import LayerCounts, count_layers, read_layers
from mnft.exports.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Calibration:
    """The images that the ranges of activations come from, and how.

    Attributes:
        images: (N, C, H, W) float32, normalised training images, preprocessed as in evaluation.
        method: "mean" (of each image's range), "minmax", "entropy" or "percentile".
        reduce_range: whether weights have 7 bits, for processors without VNNI, whose sums overflow.
    """

    images: NDArray[Any]
    method: str = "mean"
    reduce_range: bool = False


@dataclass(frozen=True, slots=True)
class HeldOutImages:
    """Val images that judge a search for the layers to leave in float.

    Attributes:
        images: (N, C, H, W) float32, normalised.
        targets: (N,) int.
        rate: how good the (1, K) outputs for an image are for its target, in [0, 1].
        max_accuracy_drop: what may be lost of the mean of `rate`, as a fraction.
        max_layers: the most layers to leave in float.
    """

    images: NDArray[Any]
    targets: NDArray[Any]
    rate: Callable[[NDArray[Any], int], float]
    max_accuracy_drop: float
    max_layers: int


class Quantizer(ABC):
    """Writes one float ONNX file in int8; each tool-chain has a subclass.

    The files are ONNX; a subclass that writes another format overrides `convert_onnx` and
    `count_layers`.

    Args:
        source: the float ONNX file.
        calibration: images, and how ranges follow from them.
    """

    def __init__(self, source: Path, calibration: Calibration) -> None:
        self._source = source
        self._calibration = calibration
        self._nodes = list(read_layers(source))

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights, in the order of the graph."""
        return list(dict.fromkeys(layer for _, layer, weighted in self._nodes if weighted))

    @abstractmethod
    def write(
        self, path: Path, keep_float: Collection[str] = (), *, thorough: bool = False
    ) -> None:
        """Write a file in int8.

        Args:
            path: the file to write.
            keep_float: layers, or modules that contain layers, that stay in float.
            thorough: lose less accuracy at the price of a slower file or a slower conversion.

        Raises:
            ExportError: the tool-chain cannot take this model.
        """

    def convert_onnx(self, source: Path, path: Path, artifact: Artifact) -> None:  # noqa: ARG002
        """Convert an ONNX file, float or int8, to the format of this quantizer's files.

        Args:
            source: the ONNX file.
            path: the file to write.
            artifact: the description of the ONNX file.
        """
        shutil.copyfile(source, path)

    def count_layers(self, path: Path) -> LayerCounts:
        """Count the layers of a file of this quantizer's format that have int8 weights."""
        return count_layers(path)
