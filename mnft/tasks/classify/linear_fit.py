"""Fit a linear classifier to features of a frozen backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnft.config.decision import DecisionConfig
from mnft.tasks.classify.decision.fit import fit_decision
from mnft.tasks.classify.decision.record import as_settings
from mnft.tasks.classify.metrics import compute_epoch_metrics
from mnft.tasks.classify.targets import compute_balanced_weights
from mnft.tasks.outputs import Features

# Weight decays that are tried, all at once, on features of unit variance: from nearly none to
# where the classifier underfits. Few images want more of it.
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0)
_EPOCHS = 30
_BATCH_SIZE = 256
_LR = 1e-2


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A fitted classifier.

    Attributes:
        weight: (K, D) float.
        bias: (K,) float.
        weight_decay: the one of WEIGHT_DECAYS that was chosen on the val split.
        train: figures on the training features.
        val: figures on the validation features.
        settings: the temperature and the threshold that fit the validation features.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    train: dict[str, float]
    val: dict[str, float]
    settings: dict[str, Any]

    @property
    def description(self) -> str:
        """How it was fitted, for the log."""
        return f"weight decay {self.weight_decay:g}, chosen on the val split"


def fit_head(
    train: Features,
    val: Features,
    *,
    num_classes: int,
    balanced: bool,
    seed: int,
    device: torch.device,
    decision: DecisionConfig | None = None,
    other: int | None = None,
) -> LinearFit:
    """Multinomial logistic regression by Adam, for several weight decays side by side.

    The largest weight decay is taken whose loss on the val split is within one standard error of
    the smallest (the one-standard-error rule of Breiman et al., 1984, section 3.4.3): a classifier
    with small weights that is as good is the better start for fine-tuning. There is no label
    smoothing: it makes a linear classifier worse (benchmarks/LOG.md).

    Args:
        train: features to fit to.
        val: features to choose the weight decay on.
        num_classes: K.
        balanced: whether each class weighs as much as any other, however many images it has.
        seed: seed of the order in which features are used.
        device: where to compute.
        decision: what is fitted to the validation features besides; None fits nothing.
        other: the output for images of none of the classes, or None.
    """
    values, targets = train.values.to(device), train.targets.to(device)
    class_weights = None
    if balanced:
        per_class = compute_balanced_weights(train.targets.tolist(), num_classes)
        class_weights = torch.tensor(per_class, device=device)
    # Constant features, such as those of dead channels, have no deviation to divide by.
    mean, std = values.mean(0), values.std(0, correction=0)
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    weights, biases = _optimize(
        (values - mean) / std,
        targets,
        num_classes,
        class_weights,
        torch.Generator().manual_seed(seed),
    )
    # The standardisation is folded into the weights, so that the head takes the plain features.
    weights = weights / std[:, None]
    biases = biases - torch.einsum("d,mdk->mk", mean, weights)
    best = _choose_decay(val, weights, biases)
    weight, bias = weights[best].cpu(), biases[best].cpu()
    figures = [_compute_figures(part, weight, bias, other) for part in (train, val)]
    settings = {}
    if decision is not None:
        logits = (val.values @ weight + bias).numpy()
        settings = as_settings(fit_decision(logits, val.targets.numpy(), decision, other))
    return LinearFit(
        weight=weight.T.contiguous(),
        bias=bias,
        weight_decay=WEIGHT_DECAYS[best],
        train=figures[0],
        val=figures[1],
        settings=settings,
    )


def _optimize(
    values: Tensor,
    targets: Tensor,
    num_classes: int,
    class_weights: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Fit one classifier for each of M weight decays: (M, D, K) weights and (M, K) biases."""
    count, width = values.shape
    decays = torch.tensor(WEIGHT_DECAYS, device=values.device)
    weights = torch.zeros(len(decays), width, num_classes, device=values.device)
    biases = torch.zeros(len(decays), 1, num_classes, device=values.device)
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
            logits = torch.matmul(values[chosen], weights) + biases
            loss = F.cross_entropy(
                logits.flatten(0, 1), targets[chosen].repeat(len(decays)), weight=class_weights
            )
            # The mean over the classifiers becomes their sum: each has its own problem.
            penalty = (decays * weights.square().sum((1, 2))).sum() / 2
            (loss * len(decays) + penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return weights.detach(), biases.detach()[:, 0]


def _choose_decay(val: Features, weights: Tensor, biases: Tensor) -> int:
    """The position in WEIGHT_DECAYS of the one to take; they ascend, so the last is the largest."""
    logits = torch.matmul(val.values, weights.cpu()) + biases.cpu()[:, None]
    losses = torch.stack([F.cross_entropy(z, val.targets, reduction="none") for z in logits])
    means = losses.mean(1)
    best = int(means.argmin())
    error = losses[best].std(correction=0) / math.sqrt(len(val.targets))
    return int(torch.nonzero(means <= means[best] + error).max())


def _compute_figures(
    features: Features, weight: Tensor, bias: Tensor, other: int | None
) -> dict[str, float]:
    logits = features.values @ weight + bias
    targets = features.targets.numpy()
    return compute_epoch_metrics(logits.numpy(), targets, other=other)._asdict()
