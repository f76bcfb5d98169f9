"""The moving average of a model's weights over its updates."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class WeightAverage(ModelEmaV3):  # type: ignore[misc]
    """timm's moving average, computed over lists of tensors that are made once an epoch.

    `ModelEmaV3.update` builds two state dicts an update and copies every counter of BatchNorm by
    itself: 1.4 ms of the host for MobileNetV2, more than the optimizer takes. The values are the
    same to the bit.

    Args:
        model: the model that learns, on its device.
        decay: the decay that is reached gradually: after n updates it is at most 1 - n^(-2/3).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay=decay, use_warmup=True)
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._counters: list[tuple[Tensor, Tensor]] = []

    def begin_epoch(self, model: nn.Module) -> None:
        """Note which tensors the epoch changes: the weights that learn and training statistics.

        Args:
            model: the model that learns, in the mode that the epoch trains it in.
        """
        pairs: list[tuple[Tensor, Tensor]] = [
            (average, weight)
            for average, weight in zip(self.module.parameters(), model.parameters(), strict=True)
            if weight.requires_grad
        ]
        for mine, theirs in zip(self.module.modules(), model.modules(), strict=True):
            if theirs.training:  # in evaluation mode BatchNorm keeps its statistics
                pairs += zip(
                    mine.buffers(recurse=False), theirs.buffers(recurse=False), strict=True
                )
        floating = [pair for pair in pairs if pair[1].is_floating_point()]
        self._averages = [average for average, _ in floating]
        self._weights = [weight for _, weight in floating]
        self._counters = [pair for pair in pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights.

        Args:
            step: the number of updates so far, on which the decay depends.
        """
        weight = 1.0 - self.get_decay(step)
        torch._foreach_lerp_(self._averages, self._weights, weight=weight)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Copy the counters, which are not averaged."""
        for average, counter in self._counters:
            average.copy_(counter)
