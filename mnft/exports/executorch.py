"""ExecuTorch files (`.pte`): written through XNNPACK, run by its own runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnft.exports.artifact import Artifact
from mnft.exports.quiet import _refusing


def _to_executorch(graph: nn.Module, example: Tensor, _artifact: Artifact, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.error import ExportError as Refused

    with _refusing(Refused):
        exported = torch.export.export(graph, (example[:1].clone(),))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


class _ExecuTorch:
    """Its thread pool has a size of its own, which Python cannot set."""

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, _threads: int | None) -> None:
        import torch
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)
        method = self._program.load_method("forward")
        assert method is not None
        self._method = method
        self._from_numpy = torch.from_numpy

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        return np.array(self._method.execute([self._from_numpy(images)])[0].numpy())


def _set_executorch_threads(threads: int) -> None:
    # Its pool is the process's, with one thread a core until it is told otherwise; a program that
    # is open already would crash.
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)
