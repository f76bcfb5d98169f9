"""Linear models on features of a frozen backbone: the optimisation, and how much decay to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Weight decays that are tried, all at once, on features of unit variance: from nearly none to
# where the model underfits. Few images want more of it.
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0)
_EPOCHS = 30
_BATCH_SIZE = 256
_LR = 1e-2


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A fitted head; see `mnft.tasks.base.FittedHead`.

    Attributes:
        weight: (K, D) float.
        bias: (K,) float.
        weight_decay: the one of WEIGHT_DECAYS that was chosen on the val split.
        train: figures on the training features.
        val: figures on the validation features.
        settings: what the task keeps with the model, fitted to the validation features.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    train: Mapping[str, float]
    val: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """How it was fitted, for the log."""
        return f"weight decay {self.weight_decay:g}, chosen on the val split"


def fit_linear(
    values: Tensor,
    targets: Tensor,
    weight_decays: Sequence[float],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    biases: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Fit one linear model for each of M weight decays, side by side, by Adam.

    Args:
        values: (N, D) float, features.
        targets: (N, ...) targets, as `loss` takes them.
        weight_decays: M penalties of the squared weights, on features of unit variance.
        loss: the mean loss over a batch, summed over the models, from (M, B, K) outputs and the
            targets of the B images. A sum, because each model has its own problem.
        biases: (K,) biases to begin with.
        seed: seed of the order in which features are used.

    Returns:
        (M, D, K) weights and (M, K) biases for the features as they are.
    """
    count, width = values.shape
    generator = torch.Generator().manual_seed(seed)
    # Constant features, such as those of dead channels, have no deviation to divide by.
    mean, std = values.mean(0), values.std(0, correction=0)
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    scaled = (values - mean) / std
    decays = torch.tensor(weight_decays, device=values.device)
    weights = torch.zeros(len(decays), width, len(biases), device=values.device)
    biases = biases.expand(len(decays), 1, -1).clone()
    parameters = [weights.requires_grad_(), biases.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=_LR)
    # At least 200 updates, however few images there are.
    epochs = max(_EPOCHS, -(-200 * _BATCH_SIZE // max(count, _BATCH_SIZE)))
    steps = epochs * -(-count // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).to(values.device)
        for start in range(0, count, _BATCH_SIZE):
            chosen = order[start : start + _BATCH_SIZE]
            total = loss(torch.matmul(scaled[chosen], weights) + biases, targets[chosen])
            penalty = (decays * weights.square().sum((1, 2))).sum() / 2
            (total + penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    # The standardisation is folded into the weights, so that the head takes the plain features.
    plain = weights.detach() / std[:, None]
    return plain, biases.detach()[:, 0] - torch.einsum("d,mdk->mk", mean, plain)


def choose_decay(losses: Tensor) -> int:
    """The largest weight decay whose loss is within one standard error of the smallest.

    The one-standard-error rule (Breiman et al., 1984, section 3.4.3): a head with small weights
    that is as good is the better start for fine-tuning.

    Args:
        losses: (M, N) loss of each model on each validation image, the weight decays ascending.
    """
    means = losses.mean(1)
    best = int(means.argmin())
    error = losses[best].std(correction=0) / math.sqrt(losses.shape[1])
    return int(torch.nonzero(means <= means[best] + error).max())
