"""The figures of a validation within a training, and what is fitted to its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mnft.config.decision import DecisionConfig
from mnft.device.ranks.distributed import Ranks
from mnft.device.ranks.rows import Rows
from mnft.tasks.classify.decision.calibration import compute_losses
from mnft.tasks.classify.decision.fit import fit_decision
from mnft.tasks.classify.decision.record import Decision, as_settings
from mnft.tasks.classify.metrics import compute_epoch_metrics


class ClassifyScore:
    """Collects the logits of evaluated images; see `mnft.tasks.base.Score`.

    Args:
        ranks: processes that share the images.
        config: what is fitted to the images; None fits nothing.
        other: the output for images of none of the classes, or None.
    """

    def __init__(
        self, ranks: Ranks, config: DecisionConfig | None = None, other: int | None = None
    ) -> None:
        self._rows = Rows(ranks)
        self._config = config
        self._other = other
        self._decision = Decision()
        self._loss = 0.0

    def update(self, positions: Sequence[int], outputs: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            positions: B positions of the images in the list of all images.
            outputs: (B, C) float logits.
            targets: (B,) int64.
        """
        self._rows.add(positions, outputs, targets)

    def result(self) -> dict[str, float]:
        """Compute loss, accuracy and macro F1.

        Raises:
            DataError: there are no images.
            ModelError: logits that are not finite.
        """
        collected = self._rows.collect()
        if collected is None:
            return compute_epoch_metrics(np.empty((0, 1)), np.empty(0, np.int64))._asdict()
        _, logits, targets = (column.numpy() for column in collected)
        figures = compute_epoch_metrics(logits, targets, other=self._other)._asdict()
        self._loss = figures["loss"]
        if self._config is not None:
            self._decision = fit_decision(logits, targets, self._config, self._other)
            scaled = logits.astype(np.float64) / self._decision.temperature
            self._loss = float(compute_losses(scaled, targets).mean())
        return figures

    def fit_settings(self) -> dict[str, Any]:
        """The temperature and the threshold that fit the images of `result`."""
        return as_settings(self._decision)

    def fitted_loss(self) -> float:
        """The loss of `result` at the temperature that was fitted."""
        return self._loss
