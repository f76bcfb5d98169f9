"""Temperatures against SciPy, figures against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from mnft.tasks.classify.decision import calibration
from mnft.tasks.classify.metrics import compute_evaluation


def draw(seed, scale, num_images=500, num_classes=4):
    """Logits whose probabilities are right at a temperature of `scale`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(num_images, num_classes))
    cumulated = softmax(logits, axis=1).cumsum(1)
    targets = (rng.uniform(size=(num_images, 1)) > cumulated).sum(1)
    return (logits * scale).astype(np.float32), targets


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.5, 4.0])
def test_a_temperature_is_that_of_a_search_over_the_smoothed_likelihood(scale):
    logits, targets = draw(0, scale)
    count, num_classes = logits.shape
    right = (count + 1) / (count + 2)
    smooth = np.full(logits.shape, (1 - right) / (num_classes - 1))
    smooth[np.arange(count), targets] = right

    def nll(log_temperature):
        return -(smooth * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1).mean()

    expected = np.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded").x)
    found = calibration.fit_temperature(logits, targets)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found == pytest.approx(scale, rel=0.15)


def test_a_temperature_that_gains_nothing_on_other_images_is_not_kept():
    kept = [calibration.fit_temperature(*draw(seed, 1.0, num_images=60)) for seed in range(20)]
    assert 8 <= sum(temperature == 1 for temperature in kept) <= 20
    logits, targets = draw(0, 3.0, num_images=19)
    assert calibration.fit_temperature(logits, targets) == 1  # too few


def test_images_that_are_all_right_are_as_sure_as_their_number_allows():
    """Without smoothing the temperature would fall to the end of its range."""
    targets = np.arange(50) % 5
    logits = np.where(np.eye(5)[targets] == 1, 4.0, 0.0)
    temperature = calibration.fit_temperature(logits, targets)
    likely = softmax(logits / temperature, axis=1).max()
    assert likely == pytest.approx(51 / 52, abs=1e-4)


def test_many_cells_are_thinned_evenly(monkeypatch):
    logits, targets = draw(1, 2.0, num_images=1200)
    monkeypatch.setattr(calibration, "_MOST_CELLS", 400 * 4)
    expected = calibration.fit_temperature(logits[::3], targets[::3])
    assert calibration.fit_temperature(logits, targets) == expected != 1


def test_figures_equal_scikit_learn():
    logits, targets = draw(2, 2.0)
    found = compute_evaluation(logits, targets, list("abcd")).calibration
    probabilities = softmax(logits.astype(np.float64), axis=1)
    truth = np.eye(4)[targets]
    assert found.nll == pytest.approx(log_loss(targets, probabilities), rel=1e-9)
    assert found.brier == pytest.approx(((probabilities - truth) ** 2).sum(1).mean(), rel=1e-9)


def test_the_interval_of_the_calibration_error_covers_it():
    """Of models that are right at temperature 1 and observed errors of many draws."""
    inside, widths = 0, []
    for seed in range(20):
        logits, targets = draw(seed, 2.5, num_images=300)
        found = compute_evaluation(logits, targets, list("abcd")).calibration
        low, high = found.ece_interval
        assert 0 <= low <= found.ece <= high <= 1
        truth_logits, truth_targets = draw(1000 + seed, 2.5, num_images=20_000)
        predicted = truth_logits.argmax(1) == truth_targets
        likely = softmax(truth_logits.astype(np.float64), axis=1).max(1)
        inside += low <= calibration.compute_ece(likely, predicted) <= high
        widths.append(high - low)
    assert inside >= 16
    assert 0.02 < np.mean(widths) < 0.2


def test_the_interval_is_the_same_twice():
    case = draw(3, 2.0)
    first, second = (compute_evaluation(*case, list("abcd")) for _ in range(2))
    assert first.calibration == second.calibration
