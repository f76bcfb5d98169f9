"""What all ways to int8 share: calibration, names of layers, a count of what was done."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from mnft.errors import ConfigError, ExportError


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the ranges of activations are found.

    Attributes:
        images: (N, C, H, W) float32, normalised training images as evaluation sees them.
        method: "mean" (of each image's range), "minmax", "entropy" or "percentile".
        reduce_range: weights in 7 bits, for processors without VNNI, whose sums can overflow.
    """

    images: NDArray[Any]
    method: str = "mean"
    reduce_range: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """What a search for the layers to leave in float is judged by.

    Attributes:
        images: (N, C, H, W) float32, normalised val images.
        targets: (N,) int, their classes.
        max_accuracy_drop: that is allowed on them, as a share.
        max_layers: to leave in float.
    """

    images: NDArray[Any]
    targets: NDArray[Any]
    max_accuracy_drop: float
    max_layers: int


@dataclass(frozen=True, slots=True)
class Census:
    """Layers with weights in a file: int8, those of them with a scale a channel, and float."""

    quantized: int
    per_channel: int
    floating: int


class Quantizer(Protocol):
    """Writes int8 files of one float file."""

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights, in the order of the graph."""

    def write(
        self, path: Path, keep_float: Collection[str] = (), *, thorough: bool = False
    ) -> None:
        """Write a file in int8, but for layers that stay in float; `thorough` costs something."""


def within(layer: str, names: Collection[str]) -> bool:
    """Whether a layer is one of these, or lies in one: `blocks.0.0.conv` in `blocks.0`."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def check_layers(names: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse names that no layer has.

    Args:
        names: that the user gave; `blocks.0` means all layers in it.
        layers: of the model.

    Raises:
        ConfigError: with the nearest names.
    """
    parents = {
        layer.rsplit(".", depth)[0] for layer in layers for depth in range(layer.count(".") + 1)
    }
    for name in names:
        if not any(within(layer, [name]) for layer in layers):
            close = difflib.get_close_matches(name, sorted({*layers, *parents}), 3, cutoff=0.4)
            raise ConfigError(
                f"no layer is called {name!r}",
                hint=f"did you mean {', '.join(close)}?"
                if close
                else f"the layers are {', '.join(layers[:8])}, ...",
                key="quantize.keep_float",
            )


def check_census(census: Census, *, what: str, per_channel: bool) -> None:
    """Refuse a file in which nothing was quantized: some tool-chains say nothing then.

    Raises:
        ExportError: no layer has int8 weights, or none a scale a channel where it should.
    """
    if not census.quantized:
        raise ExportError(f"{what} left all {census.floating} layers in float")
    if per_channel and not census.per_channel:
        raise ExportError(f"{what} gave no weight a scale a channel")
