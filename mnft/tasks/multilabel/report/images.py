"""The decisions of an evaluation, read from predictions.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.report.images import open_predictions
from mnft.tasks.multilabel.predictions import PREDICTIONS
from mnft.text import guard_cell, printable


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a model decided for each label of each image that it could read.

    Attributes:
        paths: N paths, as predictions.csv has them.
        probabilities: (N, K) float in [0, 1].
        decided: (N, K) bool.
        present: (N, K) bool; False also where it is not known.
        known: (N, K) bool.
    """

    paths: list[str]
    probabilities: NDArray[Any]
    decided: NDArray[Any]
    present: NDArray[Any]
    known: NDArray[Any]

    @property
    def missed(self) -> NDArray[Any]:
        """(N, K) bool: the label is there, and was not seen."""
        missed: NDArray[Any] = self.known & self.present & ~self.decided
        return missed

    @property
    def surplus(self) -> NDArray[Any]:
        """(N, K) bool: the label was seen, and is not there."""
        surplus: NDArray[Any] = self.known & ~self.present & self.decided
        return surplus


def read_decisions(folder: Path, labels: Sequence[str]) -> Decisions:
    """Read predictions.csv.

    Args:
        folder: the folder of an evaluation.
        labels: K names, in the order of the model's outputs.

    Raises:
        CheckpointError: the file is missing or damaged, or of other labels.
    """
    path = folder / PREDICTIONS
    paths, values = [], []
    with open_predictions(path) as rows:
        heading = next(rows)
        at_path, at_error = heading.index("path"), heading.index("error")
        columns = [
            heading.index(printable(guard_cell(f"{kind}_{name}")))
            for name in labels
            for kind in ("p", "decision", "target")
        ]
        for row in rows:
            if row[at_error]:
                continue
            paths.append(row[at_path])
            values.append([float(row[column] or "nan") for column in columns])
    table = np.array(values, dtype=np.float64).reshape(len(paths), len(labels), 3)
    targets = table[..., 2]
    return Decisions(paths, table[..., 0], table[..., 1] == 1, targets == 1, ~np.isnan(targets))
