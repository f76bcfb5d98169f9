"""An exported file as a model like any other: normalised batches in, logits out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnft.errors import CheckpointError
from mnft.exports.artifact import RECORD, Artifact, check_metadata, read_artifact
from mnft.exports.formats import Session
from mnft.exports.session import open_session
from mnft.failures import is_out_of_memory
from mnft.model.bundle import Bundle

_DAMAGED_HINT = f"{RECORD} was changed after the export: export the model again"


class RuntimeModel(nn.Module):
    """A session that takes the batches that evaluation makes.

    Args:
        session: the file in its runtime.
        artifact: what the file takes and gives.
        folder: of the export, for errors.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, session: Session, artifact: Artifact, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._session = session
        self._artifact = artifact
        own = artifact.preprocessing
        self.register_buffer("mean", torch.tensor(own.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(own.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """From normalised images (B, C, H, W) to (B, K) logits.

        Of a file that normalises itself and ends in a softmax the normalisation is undone, which
        gives the very pixels back, and the logarithms of the probabilities stand for the logits.
        """
        if self._artifact.embedded:
            images = ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if self._artifact.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        outputs = self._run(np.ascontiguousarray(images.cpu().numpy()))
        if outputs.ndim != 2 or outputs.shape[1] != len(self._artifact.class_names):
            raise CheckpointError(
                f"{self._folder / self._artifact.file} gives {outputs.shape[-1]} values an image, "
                f"but {RECORD} names {len(self._artifact.class_names)} classes",
                hint=_DAMAGED_HINT,
            )
        logits = torch.from_numpy(outputs.astype(np.float32)).to(images.device)
        # A probability that was rounded to 0 has a finite logarithm too.
        return logits.clamp_min(torch.finfo().tiny).log() if self._artifact.embedded else logits

    def _run(self, array: NDArray[Any]) -> NDArray[Any]:
        try:
            if self._artifact.dynamic_batch:
                return self._session.run(array)
            rows = [self._session.run(array[i : i + 1]).copy() for i in range(len(array))]
            return np.concatenate(rows)
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            shape = " x ".join(map(str, array.shape[1:]))
            raise CheckpointError(
                f"{self._folder / self._artifact.file} does not take inputs of {shape}, as "
                f"{RECORD} says",
                hint=_DAMAGED_HINT,
            ) from error


def load_exported(folder: Path, *, threads: int | None = None) -> Bundle:
    """Open an export as `load_bundle` opens a model folder.

    Raises:
        CheckpointError: not an export, or a damaged one, or one that says other things of its
            classes and preprocessing than its file does.
        ExportError: its runtime is not installed or does not exist here.
    """
    artifact = read_artifact(folder)
    session = open_session(folder, artifact, threads=threads)
    check_metadata(folder, artifact, session.metadata)
    return Bundle(
        folder=folder,
        model=RuntimeModel(session, artifact, folder).eval(),
        architecture=f"{artifact.architecture}, {artifact.format} {artifact.precision}",
        class_names=artifact.class_names,
        preprocessing=artifact.preprocessing,
        record={"source": dict(artifact.source)},
    )
