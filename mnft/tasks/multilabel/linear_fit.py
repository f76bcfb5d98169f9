"""Fit a linear multi-label classifier to features of a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnft.config.multilabel import MultilabelConfig
from mnft.tasks.classify.linear_fit import WEIGHT_DECAYS
from mnft.tasks.multilabel.head import MultilabelLoss, compute_pos_weight
from mnft.tasks.multilabel.metrics import compute_epoch_metrics
from mnft.tasks.multilabel.targets import count_exact
from mnft.tasks.multilabel.thresholds import as_settings, choose_thresholds
from mnft.tasks.outputs import Features

_EPOCHS = 30
_BATCH_SIZE = 256
_LR = 1e-2
_BCE = MultilabelConfig(loss="bce")


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A fitted classifier; see `mnft.tasks.base.FittedHead`.

    Attributes:
        weight: (K, D) float.
        bias: (K,) float.
        train: figures on the training features.
        val: figures on the validation features.
        settings: the thresholds chosen on the validation features.
        weight_decay: the one of WEIGHT_DECAYS that was chosen on the val split.
    """

    weight: Tensor
    bias: Tensor
    train: Mapping[str, float]
    val: Mapping[str, float]
    settings: Mapping[str, Any]
    weight_decay: float

    @property
    def description(self) -> str:
        """How it was fitted, for the log."""
        return f"weight decay {self.weight_decay:g}, chosen on the val split"


def fit_head(
    train: Features,
    val: Features,
    *,
    balanced: bool,
    seed: int,
    device: torch.device,
    labels: Sequence[str],
    config: MultilabelConfig,
) -> LinearFit:
    """One logistic regression a label by Adam, for several weight decays side by side.

    The largest weight decay is taken whose loss on the val split is within one standard error of
    the smallest (the one-standard-error rule of Breiman et al., 1984, section 3.4.3); it is the
    same for all labels. The loss is binary cross-entropy, also where fine-tuning takes the
    asymmetric loss: it is convex, and what it leaves to correct is little.

    Args:
        train: features to fit to, with (N, K) targets: 1, 0 or NaN.
        val: features to choose the weight decay and the thresholds on.
        balanced: whether present labels weigh as much as absent ones.
        seed: seed of the order in which features are used.
        device: where to compute.
        labels: K names.
        config: how thresholds are chosen.
    """
    weights, biases = fit_linear(
        train.values.to(device),
        train.targets.to(device),
        WEIGHT_DECAYS,
        pos_weight=compute_pos_weight(train.targets).to(device) if balanced else None,
        seed=seed,
    )
    best = _choose_decay(val, weights, biases)
    weight, bias = weights[best].cpu(), biases[best].cpu()
    logits = (val.values @ weight + bias).numpy()
    thresholds = choose_thresholds(logits, val.targets.numpy(), config)
    fitted = train.values @ weight + bias
    sums = count_exact(MultilabelLoss(_BCE)(fitted, train.targets), fitted, train.targets)
    figures = (sums.double() / len(fitted)).tolist()
    return LinearFit(
        weight=weight.T.contiguous(),
        bias=bias,
        train=dict(zip(("loss", "exact"), figures, strict=True)),
        val=compute_epoch_metrics(logits, val.targets.numpy(), thresholds)._asdict(),
        settings=as_settings(thresholds, labels),
        weight_decay=WEIGHT_DECAYS[best],
    )


def fit_linear(
    values: Tensor,
    targets: Tensor,
    weight_decays: Sequence[float],
    *,
    pos_weight: Tensor | None = None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Fit one classifier for each of M weight decays.

    Args:
        values: (N, D) float, features.
        targets: (N, K) float: 1, 0 or NaN.
        weight_decays: M penalties of the squared weights, on features of unit variance.
        pos_weight: (K,) weight of present labels, or None.
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
    weights = torch.zeros(len(decays), width, targets.shape[1], device=values.device)
    # From the frequency of each label on: that of a rare one is farther away than these few small
    # updates reach.
    present, absent = (targets == 1).sum(0) + 0.5, (targets == 0).sum(0) + 0.5
    odds = present / absent if pos_weight is None else pos_weight * present / absent
    biases = odds.log().expand(len(decays), 1, -1).clone()
    parameters = [weights.requires_grad_(), biases.requires_grad_()]
    loss = MultilabelLoss(_BCE, pos_weight=pos_weight)
    optimizer = torch.optim.Adam(parameters, lr=_LR)
    # At least 200 updates, however few images there are.
    epochs = max(_EPOCHS, -(-200 * _BATCH_SIZE // max(count, _BATCH_SIZE)))
    steps = epochs * -(-count // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).to(values.device)
        for start in range(0, count, _BATCH_SIZE):
            chosen = order[start : start + _BATCH_SIZE]
            logits = torch.matmul(scaled[chosen], weights) + biases
            # A sum over labels and over the classifiers: each has its own problem.
            total = loss.compute_cells(logits, targets[chosen]).sum() / len(chosen)
            penalty = (decays * weights.square().sum((1, 2))).sum() / 2
            (total + penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    # The standardisation is folded into the weights, so that the head takes the plain features.
    plain = weights.detach() / std[:, None]
    return plain, biases.detach()[:, 0] - torch.einsum("d,mdk->mk", mean, plain)


def _choose_decay(val: Features, weights: Tensor, biases: Tensor) -> int:
    """The position in WEIGHT_DECAYS of the one to take; they ascend, so the last is the largest."""
    logits = torch.matmul(val.values, weights.cpu()) + biases.cpu()[:, None]
    losses = MultilabelLoss(_BCE).compute_cells(logits, val.targets).sum(2)
    means = losses.mean(1)
    best = int(means.argmin())
    error = losses[best].std(correction=0) / math.sqrt(len(val.targets))
    return int(torch.nonzero(means <= means[best] + error).max())
