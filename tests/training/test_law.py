"""The law of a learning curve: known laws are found, and the band covers what comes."""

from __future__ import annotations

import numpy as np
import pytest

from mnft.training.head.curve import CurvePoint
from mnft.training.head.law import estimate_spread, fit_law, forecast

SIZES = np.array([25.0, 50, 100, 200, 400, 800])


def errors_of(floor: float, scale: float, exponent: float, sizes: np.ndarray) -> np.ndarray:
    return floor + scale * sizes**-exponent


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"), [(0.05, 1.2, 0.5), (0.0, 0.9, 0.3), (0.1, 3.0, 0.8)]
)
def test_a_law_is_found_in_its_own_values(floor: float, scale: float, exponent: float) -> None:
    errors = errors_of(floor, scale, exponent, SIZES)
    found = [
        float(value[0]) for value in fit_law(SIZES, errors[None], 1e-4 * errors, np.array([0.4]))
    ]
    assert found == pytest.approx([floor, scale, exponent], abs=1e-3)


def test_floor_and_scale_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    errors = 0.3 + 0.05 * rng.standard_normal((200, len(SIZES)))  # also curves that rise
    floors, scales, _ = fit_law(SIZES, errors, np.full(len(SIZES), 0.01), np.full(200, 0.4))
    assert floors.min() >= 0
    assert scales.min() >= 0


def draw_points(
    rng: np.random.Generator,
    law: tuple[float, float, float],
    *,
    val_images: int = 400,
    draws: int = 5,
    spread: float = 0.2,
) -> list[CurvePoint]:
    """Each val image is right from some error rate on, and each training set has its own luck."""
    hard = rng.uniform(size=val_images)
    points = []
    for size in SIZES:
        number = draws if size < SIZES[-1] else 1
        overlap = 1 - size / SIZES[-1] if number > 1 else 1
        luck = spread / np.sqrt(size) * np.sqrt(overlap) * rng.standard_normal(number)
        right = hard > (errors_of(*law, size) + luck)[:, None]
        parts = np.arange(val_images) % 20
        without = [[row[parts != g].mean() for g in range(20)] for row in right]
        points.append(CurvePoint(size, right.mean(1), np.array(without)))
    return points


def test_the_band_covers_what_came_about_as_often_as_it_says() -> None:
    law = (0.06, 1.5, 0.5)
    truth = 1 - errors_of(*law, 2 * SIZES[-1])
    gained = errors_of(*law, SIZES[-1]) - errors_of(*law, 2 * SIZES[-1])
    figures, gains, widths = [], [], []
    for seed in range(120):
        expected = forecast(
            draw_points(np.random.default_rng(seed), law), val_images=400, seed=seed
        )
        figures.append(expected.figure.low <= truth <= expected.figure.high)
        gains.append(expected.gain.low <= gained <= expected.gain.high)
        widths.append(expected.figure.high - expected.figure.low)
    assert 0.88 <= np.mean(figures) <= 0.995
    assert np.mean(gains) >= 0.88
    # 400 images alone give a band of 5 points: a band that covers by being wide says nothing.
    assert np.mean(widths) < 0.08


def test_more_val_images_and_a_flat_curve_narrow_the_band() -> None:
    def width(**changes: int) -> float:
        points = draw_points(np.random.default_rng(1), (0.1, 0.5, 0.7), **changes)
        expected = forecast(points, val_images=changes.get("val_images", 400))
        return expected.figure.high - expected.figure.low

    assert width(val_images=6400) < 0.6 * width(val_images=400)


def test_the_forecast_is_the_same_for_the_same_seed_and_inside_its_band() -> None:
    points = draw_points(np.random.default_rng(3), (0.06, 1.5, 0.5))
    first, again, other = (forecast(points, val_images=400, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.figure.value == other.figure.value
    assert first != other
    for found in (first.figure, first.gain):
        assert found.low <= found.value <= found.high
    assert first.images == 2 * SIZES[-1]
    assert float(first.predict(np.array([first.images]))[0]) == pytest.approx(first.figure.value)


def test_the_spread_of_draws_that_overlap_is_that_of_separate_training_sets() -> None:
    rng = np.random.default_rng(0)
    points = [
        CurvePoint(p.images, p.figures, p.without_part)
        for p in draw_points(rng, (0.1, 1.0, 0.5), draws=400, val_images=20_000, spread=0.3)
    ]
    assert estimate_spread(points) == pytest.approx(0.3 / np.sqrt(SIZES), rel=0.1)


def test_a_curve_without_an_error_leaves_room_for_one() -> None:
    points = [
        CurvePoint(size, np.ones(n), np.ones((n, 20))) for size, n in ((25, 5), (50, 5), (100, 1))
    ]
    expected = forecast(points, val_images=60)
    assert expected.figure.value == pytest.approx(1)
    assert expected.figure.low == pytest.approx(1 - 3 / 60)
    assert expected.figure.high == pytest.approx(1)
    assert abs(expected.gain.value) < 1e-6
