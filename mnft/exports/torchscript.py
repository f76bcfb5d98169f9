"""TorchScript files, run by torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnft.exports.artifact import Artifact


def _to_torchscript(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    with torch.inference_mode(False), torch.no_grad():
        # Unchecked: a second and third run would say less than the comparison on real images.
        traced = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.freeze(traced).save(str(path))


class _TorchScript:
    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, threads: int | None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        self._module = module.eval()
        self._from_numpy = torch.from_numpy
        self._inference_mode = torch.inference_mode

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        with self._inference_mode():
            return np.asarray(self._module(self._from_numpy(images)).numpy())
