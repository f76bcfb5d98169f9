"""Which layers lose most in int8: each of them alone in int8, the others in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.compress.quantize.onnxruntime import OnnxRuntimeQuantizer
from mnft.exports.artifact import Artifact
from mnft.exports.session import open_session

_FILE = "sensitivity.onnx"


def rank_layers(
    quantizer: OnnxRuntimeQuantizer,
    artifact: Artifact,
    source: Path,
    images: NDArray[Any],
    work: Path,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[tuple[str, float]]:
    """Rank layers by the change of the outputs when they alone are in int8.

    To leave one out of a network that has collapsed says little of that one; this does.

    Args:
        quantizer: of the float file.
        artifact: of the float file.
        source: the float file.
        images: (N, C, H, W) float32, normalised; a few are enough.
        work: a folder for files in between.
        on_progress: called with the layers done and all.

    Returns:
        Layers with the mean squared difference of their logits from the float file's, worst first.
    """
    reference = _run(source, artifact, images)
    found = []
    on_progress(0, len(quantizer.layers))
    for done, layer in enumerate(quantizer.layers, start=1):
        quantizer.write(work / _FILE, only=[layer])
        difference = _run(work / _FILE, artifact, images) - reference
        # A layer whose outputs are not finite is the worst of all.
        error = float(np.square(difference).mean()) if np.isfinite(difference).all() else np.inf
        found.append((layer, error))
        on_progress(done, len(quantizer.layers))
    return sorted(found, key=lambda pair: -pair[1])


def _run(path: Path, artifact: Artifact, images: NDArray[Any]) -> NDArray[Any]:
    session = open_session(path.parent, replace(artifact, file=path.name))
    return session.run(images).astype(np.float64)


def choose_counts(largest: int, available: int) -> Sequence[int]:
    """How many layers to leave in float, a few more at a time: 1, 2, 4, ... up to `largest`."""
    largest = min(largest, available - 1)  # something must be quantized
    counts = []
    count = 1
    while count < largest:
        counts.append(count)
        count *= 2
    return [*counts, largest] if largest > 0 else []
