"""The fitted head against scikit-learn's logistic regression, with unknown targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mnft.config.multilabel import MultilabelConfig
from mnft.tasks.linear_fit import WEIGHT_DECAYS, LinearFit
from mnft.tasks.multilabel.linear_fit import fit_head, fit_logistic
from mnft.tasks.multilabel.metrics import compute_epoch_metrics, compute_loss
from mnft.tasks.multilabel.thresholds import read_settings
from mnft.tasks.outputs import Features

LABELS = ("a", "b", "c")


def draw(count: int, seed: int, *, unknown: float = 0.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 6, generator=generator) * 3 + 1
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    noise = 3 * torch.randn(count, 3, generator=generator)
    targets = ((values - 1) @ weight + noise > torch.tensor([0.0, 4.0, 8.0])).float()
    hidden = torch.rand(count, 3, generator=generator) < unknown
    return Features(values, targets.masked_fill(hidden, torch.nan))


def fit(train: Features, val: Features, **changes: Any) -> LinearFit:
    options: dict[str, Any] = {"balanced": False, "seed": 0, "device": torch.device("cpu")}
    options |= {"labels": LABELS, "config": MultilabelConfig()}
    return fit_head(train, val, **(options | changes))


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_each_label_is_the_logistic_regression_of_scikit_learn(decay: float) -> None:
    train = draw(500, 0, unknown=0.3)
    weights, biases = fit_logistic(train.values, train.targets, [decay, 3.0], seed=0)
    mean, std = train.values.mean(0), train.values.std(0, correction=0)
    scaled = ((train.values - mean) / std).numpy()
    for label in range(3):
        known = ~train.targets[:, label].isnan().numpy()
        # Its penalty is that of a sum over images; ours of a mean over all, known or not.
        reference = LogisticRegression(C=1 / (decay * 500), tol=1e-8, max_iter=1000)
        reference.fit(scaled[known], train.targets[:, label].numpy()[known])
        found = train.values @ weights[0, :, label] + biases[0, label]
        expected = scaled @ reference.coef_[0] + reference.intercept_[0]
        np.testing.assert_allclose(found.numpy(), expected, atol=0.06)


def test_the_head_gives_the_figures_that_it_says_and_takes_plain_features() -> None:
    train, val = draw(300, 0, unknown=0.1), draw(200, 1, unknown=0.1)
    fitted = fit(train, val)
    assert fitted.weight.shape == (3, 6)
    logits = (val.values @ fitted.weight.T + fitted.bias).numpy()
    thresholds = read_settings(fitted.settings, LABELS)
    expected = compute_epoch_metrics(logits, val.targets.numpy(), thresholds)._asdict()
    assert fitted.val == pytest.approx(expected)
    assert fitted.val["map"] > 0.8
    assert list(fitted.train) == ["loss", "exact"]
    assert 0.3 < fitted.train["exact"] <= 1
    assert fitted.weight_decay in WEIGHT_DECAYS
    assert "chosen on the val split" in fitted.description


def test_the_largest_decay_within_one_standard_error_is_taken() -> None:
    train, val = draw(60, 0), draw(200, 1)
    weights, biases = fit_logistic(train.values, train.targets, WEIGHT_DECAYS, seed=0)
    losses = []
    for weight, bias in zip(weights, biases, strict=True):
        logits = (val.values @ weight + bias).numpy()
        rows = [
            3 * compute_loss(logits[i : i + 1], val.targets[i : i + 1].numpy()) for i in range(200)
        ]
        losses.append(rows)
    means = np.mean(losses, axis=1)
    limit = means.min() + np.std(losses[int(means.argmin())]) / np.sqrt(200)
    expected = max(d for d, mean in zip(WEIGHT_DECAYS, means, strict=True) if mean <= limit)
    assert fit(train, val).weight_decay == expected


def test_balanced_weights_find_more_of_a_rare_label() -> None:
    train, val = draw(400, 0), draw(300, 1)
    decided = [
        float((val.values @ f.weight.T + f.bias > 0)[:, 2].float().mean())
        for f in (fit(train, val), fit(train, val, balanced=True))
    ]
    assert decided[1] > 1.3 * decided[0]


def test_constant_features_and_one_label() -> None:
    train, val = draw(100, 0), draw(100, 1)
    dead = [
        Features(torch.cat([f.values, torch.ones(100, 1)], dim=1), f.targets[:, :1])
        for f in (train, val)
    ]
    fitted = fit(*dead, labels=("a",))
    assert fitted.weight.shape == (1, 7)
    assert fitted.weight.isfinite().all()
    assert fitted.weight[0, 6] == 0


def test_the_frequency_of_a_rare_label_is_right_although_updates_are_few() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2000, 4, generator=generator)
    targets = (torch.rand(2000, 2, generator=generator) < torch.tensor([0.01, 0.5])).float()
    weights, biases = fit_logistic(values, targets, [1.0], seed=0)
    probabilities = torch.sigmoid(values @ weights[0] + biases[0])
    assert probabilities.mean(0).tolist() == pytest.approx(targets.mean(0).tolist(), rel=0.05)


def test_weights_of_present_labels_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 4, generator=generator)
    targets = (values[:, :1] + torch.randn(1000, 1, generator=generator) > 2.5).float()
    pos_weight = torch.tensor([10.0])
    weights, biases = fit_logistic(values, targets, [1.0], pos_weight=pos_weight, seed=0)
    scaled = ((values - values.mean(0)) / values.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / 1000, class_weight={1: 10}, tol=1e-8, max_iter=1000)
    reference.fit(scaled, targets[:, 0].numpy())
    expected = scaled @ reference.coef_[0] + reference.intercept_[0]
    found = (values @ weights[0] + biases[0])[:, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=0.03)
