"""Fit a linear multi-label classifier to features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnft.config.multilabel import MultilabelConfig
from mnft.tasks.linear_fit import WEIGHT_DECAYS, LinearFit, choose_decay, fit_linear
from mnft.tasks.multilabel.head import MultilabelLoss, compute_pos_weight
from mnft.tasks.multilabel.metrics import compute_epoch_metrics
from mnft.tasks.multilabel.targets import count_exact
from mnft.tasks.multilabel.thresholds import as_settings, choose_thresholds
from mnft.tasks.outputs import Features

_BCE = MultilabelConfig(loss="bce")


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
    """One logistic regression a label; their weight decay, one for all, is chosen on the val split.

    The loss is binary cross-entropy, also where fine-tuning takes the asymmetric loss: it is
    convex, and what it leaves to correct is little.

    Args:
        train: features to fit to, with (N, K) targets: 1, 0 or NaN.
        val: features to choose the weight decay and the thresholds on.
        balanced: whether present labels weigh as much as absent ones.
        seed: seed of the order in which features are used.
        device: where to compute.
        labels: K names.
        config: how thresholds are chosen.
    """
    weights, biases = fit_logistic(
        train.values.to(device),
        train.targets.to(device),
        WEIGHT_DECAYS,
        pos_weight=compute_pos_weight(train.targets).to(device) if balanced else None,
        seed=seed,
    )
    of_all = torch.matmul(val.values, weights.cpu()) + biases.cpu()[:, None]
    best = choose_decay(MultilabelLoss(_BCE).compute_cells(of_all, val.targets).sum(2))
    weight, bias = weights[best].cpu(), biases[best].cpu()
    logits = (val.values @ weight + bias).numpy()
    thresholds = choose_thresholds(logits, val.targets.numpy(), config)
    fitted = train.values @ weight + bias
    sums = count_exact(MultilabelLoss(_BCE)(fitted, train.targets), fitted, train.targets)
    loss, exact, known = sums.double().tolist()
    return LinearFit(
        weight=weight.T.contiguous(),
        bias=bias,
        weight_decay=WEIGHT_DECAYS[best],
        train={"loss": loss / len(fitted), "exact": exact / max(known, 1)},
        val=compute_epoch_metrics(logits, val.targets.numpy(), thresholds)._asdict(),
        settings=as_settings(thresholds, labels),
    )


def fit_logistic(
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
    cells = MultilabelLoss(_BCE, pos_weight=pos_weight).compute_cells
    # From the frequency of each label on: that of a rare one is farther away than these few small
    # updates reach.
    present, absent = (targets == 1).sum(0) + 0.5, (targets == 0).sum(0) + 0.5
    odds = present / absent if pos_weight is None else pos_weight * present / absent
    return fit_linear(
        values,
        targets,
        weight_decays,
        # Also a sum over the labels, of which each has its own problem too.
        loss=lambda logits, targets: cells(logits, targets).sum() / logits.shape[1],
        biases=odds.log(),
        seed=seed,
    )
