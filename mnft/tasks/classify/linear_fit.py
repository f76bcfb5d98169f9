"""Fit a linear classifier to features of a frozen backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    return LinearFit(
        weight=weight.T.contiguous(),
        bias=bias,
        weight_decay=WEIGHT_DECAYS[best],
        train=_compute_figures(train, weight, bias),
        val=_compute_figures(val, weight, bias),
    )


def _compute_figures(features: Features, weight: Tensor, bias: Tensor) -> dict[str, float]:
    logits = features.values @ weight + bias
    return compute_epoch_metrics(logits.numpy(), features.targets.numpy())._asdict()
