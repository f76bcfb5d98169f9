"""The images of an evaluation, read from predictions.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.errors import CheckpointError
from mnft.tasks.classify.predictions import PREDICTIONS
from mnft.text import guard_cell


@dataclass(frozen=True, slots=True)
class JudgedImages:
    """What a model said of each image that it could read.

    Attributes:
        paths: N paths, as predictions.csv has them.
        targets: (N,) int, the class of each image.
        predictions: (N,) int, the class that the model named.
        confidences: (N,) float in [0, 1], the probability of that class.
        own: (N,) float in [0, 1], the probability of the image's class.
    """

    paths: list[str]
    targets: NDArray[Any]
    predictions: NDArray[Any]
    confidences: NDArray[Any]
    own: NDArray[Any]

    @property
    def wrong(self) -> NDArray[Any]:
        """Positions of the mistakes, the most confident first."""
        positions = np.flatnonzero(self.targets != self.predictions)
        return positions[np.argsort(-self.confidences[positions], kind="stable")]


def read_images(folder: Path, class_names: Sequence[str]) -> JudgedImages:
    """Read predictions.csv, a row at a time: with many classes the whole would not fit in memory.

    Args:
        folder: the folder of an evaluation.
        class_names: C names, in the order of the model's outputs.

    Raises:
        CheckpointError: the file is missing or damaged, or of other classes.
    """
    path = folder / PREDICTIONS
    guarded = [
        guard_cell(name).encode("utf-8", "backslashreplace").decode() for name in class_names
    ]
    index = {name: number for number, name in enumerate(guarded)}
    paths, classes, shares = [], [], []
    with open_predictions(path) as rows:
        heading = next(rows)
        at = {name: heading.index(name) for name in ("path", "target", "prediction")}
        confidence = heading.index("confidence")
        columns = [heading.index(f"p_{name}") for name in guarded]
        for row in rows:
            if not row[at["prediction"]]:
                continue  # a file that could not be read
            target = index[row[at["target"]]]
            paths.append(row[at["path"]])
            classes.append((target, index[row[at["prediction"]]]))
            shares.append((float(row[confidence]), float(row[columns[target]])))
    numbers = np.array(classes, dtype=np.int64).reshape(-1, 2)
    fractions = np.array(shares, dtype=np.float64).reshape(-1, 2)
    return JudgedImages(paths, numbers[:, 0], numbers[:, 1], fractions[:, 0], fractions[:, 1])


@contextmanager
def open_predictions(path: Path) -> Iterator[Iterator[list[str]]]:
    """Give the rows of predictions.csv, and turn what is wrong with them into one error.

    Raises:
        CheckpointError: the file is missing or damaged, or has other columns than were looked for.
    """
    # A label may have a name that is longer than what the csv module takes by default.
    csv.field_size_limit(1 << 24)
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            yield csv.reader(stream)
    except (OSError, ValueError, KeyError, StopIteration, csv.Error, IndexError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error or 'it is empty'}",
            hint="evaluate again with `mnft eval`, which writes it",
        ) from error
