"""TorchScript files, run by torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnft.exports.artifact import Artifact
from mnft.exports.formats import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn


def write(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    """Write a traced and frozen module."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        # Unchecked: a second and third run would say less than the comparison on real images.
        traced = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.freeze(traced).save(str(path))


def open(path: Path, threads: int | None) -> Session:
    """Load a file into torch."""
    import torch

    from mnft.device.select import keep_freed_memory

    # As `mnft eval` does; without it torch is several times slower on large batches.
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(images)).numpy())

    return Session(run)
