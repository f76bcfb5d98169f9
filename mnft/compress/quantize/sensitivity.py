"""Which layers lose most in int8: quantize one at a time, with all others in float.

NNCF's own search needs OpenVINO files; this one serves the methods that write ONNX.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.compress.quantize.onnxruntime import OnnxRuntimeQuantizer
from mnft.exports.artifact import Artifact
from mnft.exports.session import open_session
from mnft.reporter import SILENT, Reporter


def rank_layers(
    quantizer: OnnxRuntimeQuantizer,
    source: Path,
    artifact: Artifact,
    images: NDArray[Any],
    work: Path,
    reporter: Reporter = SILENT,
) -> list[tuple[str, float]]:
    """Rank layers by how far the outputs move when only that layer is in int8.

    The opposite, one layer in float and all others in int8, would say little about that layer where
    int8 has ruined the network.

    Args:
        quantizer: a quantizer of the float file.
        source: the float file.
        artifact: the description of the float file: its input and output.
        images: (N, C, H, W) float32, normalised; a few are enough.
        work: a folder for intermediate files.
        reporter: receives progress.

    Returns:
        Layers with the mean squared difference of their logits from the float file's, worst first.
    """

    def run(path: Path) -> NDArray[Any]:
        session = open_session(path.parent, replace(artifact, file=path.name))
        return session.run(images).astype(np.float64)

    reference, path = run(source), work / "sensitivity.onnx"
    errors = []
    with reporter.count("ranking layers by what int8 costs", len(quantizer.layers)) as advance:
        for layer in quantizer.layers:
            quantizer.write(path, only=[layer])
            difference = run(path) - reference
            # A layer whose outputs are not finite is the worst of all.
            finite = np.isfinite(difference).all()
            errors.append((layer, float(np.square(difference).mean()) if finite else np.inf))
            advance(1)
    return sorted(errors, key=lambda entry: -entry[1])


def choose_counts(largest: int, available: int) -> list[int]:
    """How many layers to leave in float, a few more at a time: 1, 2, 4, ... up to `largest`."""
    largest = min(largest, available - 1)  # something must be quantized
    if largest <= 0:
        return []
    return [*(2**i for i in range((largest - 1).bit_length())), largest]
