"""Fit a linear classifier to features of a frozen backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mnft.config.decision import DecisionConfig
from mnft.tasks.classify.decision.fit import fit_decision
from mnft.tasks.classify.decision.record import as_settings
from mnft.tasks.classify.metrics import compute_epoch_metrics
from mnft.tasks.classify.targets import compute_balanced_weights
from mnft.tasks.linear_fit import WEIGHT_DECAYS, LinearFit, choose_decay, fit_linear
from mnft.tasks.outputs import Features


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
    """Multinomial logistic regression; its weight decay is chosen on the val split.

    There is no label smoothing: it makes a linear classifier worse (benchmarks/LOG.md).

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
    class_weights = None
    if balanced:
        per_class = compute_balanced_weights(train.targets.tolist(), num_classes)
        class_weights = torch.tensor(per_class, device=device)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        models = len(logits)
        mean = F.cross_entropy(logits.flatten(0, 1), targets.repeat(models), weight=class_weights)
        return mean * models

    weights, biases = fit_linear(
        train.values.to(device),
        train.targets.to(device),
        WEIGHT_DECAYS,
        loss=loss,
        biases=torch.zeros(num_classes, device=device),
        seed=seed,
    )
    logits = torch.matmul(val.values, weights.cpu()) + biases.cpu()[:, None]
    losses = torch.stack([F.cross_entropy(z, val.targets, reduction="none") for z in logits])
    best = choose_decay(losses)
    weight, bias = weights[best].cpu(), biases[best].cpu()
    figures = [_compute_figures(part, weight, bias, other) for part in (train, val)]
    settings = {}
    if decision is not None:
        chosen = (val.values @ weight + bias).numpy()
        settings = as_settings(fit_decision(chosen, val.targets.numpy(), decision, other))
    return LinearFit(
        weight=weight.T.contiguous(),
        bias=bias,
        weight_decay=WEIGHT_DECAYS[best],
        train=figures[0],
        val=figures[1],
        settings=settings,
    )


def _compute_figures(
    features: Features, weight: Tensor, bias: Tensor, other: int | None
) -> dict[str, float]:
    logits = features.values @ weight + bias
    targets = features.targets.numpy()
    return compute_epoch_metrics(logits.numpy(), targets, other=other)._asdict()
