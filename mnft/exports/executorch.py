"""ExecuTorch files (`.pte`): written through XNNPACK, run by its own runtime."""

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
    """Write a file for one image at a time; the format has no place for class names."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(graph, (example[:1].clone(),))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def open(path: Path, threads: int | None) -> Session:
    """Load a file into ExecuTorch's runtime."""
    import torch

    if threads:
        from executorch.extension.pybindings import portable_lib

        # The pool belongs to the process and has one thread a core until it is told otherwise. A
        # program that is open already would crash: only the first file may be given `threads`.
        portable_lib._unsafe_reset_threadpool(threads)
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    assert method is not None

    # The default argument lets the program live as long as its method.
    def run(images: NDArray[Any], _program: Any = program) -> NDArray[Any]:
        return np.array(method.execute([torch.from_numpy(images)])[0].numpy())

    return Session(run)
