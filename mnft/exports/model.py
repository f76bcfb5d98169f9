"""An exported file as a model like any other: normalised batches in, outputs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mnft.errors import CheckpointError, foreign
from mnft.exports.artifact import RECORD, Artifact, check_metadata, read_artifact
from mnft.exports.formats import Session
from mnft.exports.session import open_session
from mnft.model.bundle import Bundle
from mnft.tasks import load_activation

_DAMAGED_HINT = f"{RECORD} was changed after the export: export the model again"


class RuntimeModel(nn.Module):
    """A session that takes the batches that evaluation makes.

    Args:
        session: the file in its runtime.
        artifact: what the file takes and gives.
        folder: the folder of the export, for messages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, session: Session, artifact: Artifact, folder: Path) -> None:
        super().__init__()
        self._file = folder / artifact.file
        self._session = session
        self._artifact = artifact
        self._activation = load_activation(artifact.task)
        self.register_buffer("mean", torch.tensor(artifact.preprocessing.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(artifact.preprocessing.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """From normalised images (B, C, H, W) to (B, K) outputs.

        For a file that normalises pixels itself and ends in an activation, the normalisation is
        undone, which gives back the exact pixels, and so is the activation.
        """
        if self._artifact.embedded:
            images = ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if self._artifact.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        array = np.ascontiguousarray(images.cpu().numpy())
        shape = " x ".join(map(str, array.shape[1:]))
        what = f"{self._file} does not take inputs of {shape}, as {RECORD} says"
        with foreign(what, CheckpointError, hint=_DAMAGED_HINT):
            if self._artifact.dynamic_batch:
                outputs = self._session.run(array)
            else:  # a copy of each, as the runtime may write the next one to the same place
                rows = [self._session.run(array[i : i + 1]).copy() for i in range(len(array))]
                outputs = np.concatenate(rows)
        if outputs.ndim != 2 or outputs.shape[1] != len(self._artifact.labels):
            raise CheckpointError(
                f"{self._file} gives {outputs.shape[-1]} values an image, but {RECORD} names "
                f"{len(self._artifact.labels)} outputs",
                hint=_DAMAGED_HINT,
            )
        values = torch.from_numpy(outputs.astype(np.float32)).to(images.device)
        return self._activation.invert(values) if self._artifact.embedded else values


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
        labels=artifact.labels,
        preprocessing=artifact.preprocessing,
        record={"source": dict(artifact.source)},
        task=artifact.task,
        settings=artifact.settings,
    )
