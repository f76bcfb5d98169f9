"""The layers of an ONNX file: their names in torch, and which of them are in int8."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnft.errors import ConfigError, ExportError

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """How many layers of a file have weights in int8, and how many in float.

    Attributes:
        quantized: layers with int8 weights.
        per_channel: those of them with a scale for each output channel.
        floating: layers with float weights.
    """

    quantized: int
    per_channel: int
    floating: int


def read_layers(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Each node of an ONNX file: its name, its layer in torch, and whether it has weights."""
    import onnx

    model = onnx.load(str(path))
    tensors = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        weighted = node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in tensors
        if weighted and node.input[1].endswith(".weight"):
            yield node.name, node.input[1].removesuffix(".weight"), True
            continue
        # The exporter notes the modules that a node comes from, as a list in Python's notation.
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        try:
            scopes = json.loads(metadata.get(_SCOPES, "[]").replace("'", '"'))
        except ValueError:
            scopes = []
        # The last scope is the operator itself.
        known = isinstance(scopes, list) and len(scopes) > 1
        yield node.name, (str(scopes[-2]) if known else "") or node.name, weighted


def count_layers(path: Path) -> LayerCounts:
    """Count the layers of an ONNX file that have int8 weights."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    int8 = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    dequantized = {
        node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    quantized = per_channel = floating = 0
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            continue
        source = dequantized.get(node.input[1])
        if source is not None and tensors[source.input[0]].data_type in int8:
            quantized += 1
            per_channel += int(np.prod(tensors[source.input[1]].dims)) > 1
        elif source is not None or node.input[1] in tensors:
            floating += 1
    return LayerCounts(quantized, per_channel, floating)


def within(layer: str, names: Collection[str]) -> bool:
    """Whether a layer is one of these modules or lies in one: `blocks.0.0.conv` in `blocks.0`."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def check_names(names: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse names that no layer has.

    Args:
        names: what the user gave; `blocks.0` means all layers in it.
        layers: the layers of the model.

    Raises:
        ConfigError: a name is unknown; the hint has the nearest names.
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


def check_counts(counts: LayerCounts, *, what: str, per_channel: bool) -> None:
    """Refuse a file in which nothing was quantized; some tool-chains do not report that.

    Raises:
        ExportError: no layer has int8 weights, or none has a scale for each channel although
            `per_channel` asks for it.
    """
    if not counts.quantized:
        raise ExportError(f"{what} left all {counts.floating} layers in float")
    if per_channel and not counts.per_channel:
        raise ExportError(f"{what} gave no weight a scale per channel")
