"""What a learning curve says of more images: a power law, and a band by resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mnft.tasks.outputs import Rate
from mnft.training.head.curve import CurvePoint, Floats

# Exponents that are tried, and those that are likely before anything is measured. A few noisy sizes
# alone would often choose the steepest law, with a floor at which nothing more is to be gained.
_EXPONENTS = np.linspace(0.1, 1.2, 23)
_USUAL, _USUAL_SPREAD = 0.35, 0.2
# No curve is a power law exactly: what it may be off by, as a fraction of the error.
_MISFIT = 0.03
_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of more images.

    Attributes:
        images: their number.
        figure: the figure that they are expected to give; the band holds the chance of the val
            images, too.
        gain: how much more that is than the figure of all images that there are, on the same val
            images.
        floor: the error that the law leaves with any number of images.
        scale: the law is floor + scale * images^-exponent.
        exponent: how fast the error falls.
    """

    images: float
    figure: Rate
    gain: Rate
    floor: float
    scale: float
    exponent: float

    def as_record(self) -> dict[str, Any]:
        """All values as JSON values."""
        return asdict(self)

    def predict(self, images: Floats) -> Floats:
        """The figure by the law, for numbers of images."""
        return 1 - self.floor - self.scale * images**-self.exponent


def forecast(
    points: Sequence[CurvePoint], *, val_images: int, factor: float = 2.0, seed: int = 0
) -> Forecast:
    """Extrapolate a learning curve by 1 - figure = floor + scale * images^-exponent.

    The band is that of many curves, each with its own law: the draws of each size are drawn again,
    with replacement, and the val images vary by the delete-a-group jackknife (Kott, 2001, "The
    Delete-a-Group Jackknife", Journal of Official Statistics 17), alike for all sizes.

    Args:
        points: three points or more, the fewest images first; the last is one draw of all images.
        val_images: number of val images.
        factor: how many times as many images are asked for.
        seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    sizes = np.array([point.images for point in points])
    spread = estimate_spread(points)
    means = np.array([point.figures.mean() for point in points])
    draws = np.array([len(point.figures) for point in points])
    # Not 0 where every image is right.
    misfit = _MISFIT * np.maximum(1 - means, 1 / val_images)
    sigma = np.hypot(spread / np.sqrt(draws), misfit)
    curves, of_other_val_images = _vary(points, spread[-1], misfit, rng)
    usual = _USUAL + _USUAL_SPREAD * rng.standard_normal(_RESAMPLES)
    wanted = factor * sizes[-1]
    # The luck of the training set that will be there.
    later = spread[-1] / np.sqrt(factor) * rng.standard_normal(_RESAMPLES)

    def extrapolate(curves: Floats, usual: Floats) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
        law = floors, scales, exponents = fit_law(sizes, 1 - curves, sigma, usual)
        return 1 - floors - scales * wanted**-exponents, law

    figures = extrapolate(of_other_val_images, usual)[0] + later
    gains = extrapolate(curves, usual)[0] + later - means[-1]
    expected, law = extrapolate(means[None], np.array([_USUAL]))
    floor, scale, exponent = (float(value[0]) for value in law)
    figure = _range(float(expected[0]), np.clip(figures, 0, 1))
    # Where all images are right, the error may still be 3 / images (the rule of three).
    figure = replace(figure, low=min(figure.low, 1 - 3 / val_images))
    return Forecast(
        images=wanted,
        figure=figure,
        gain=_range(float(expected[0] - means[-1]), gains),
        floor=floor,
        scale=scale,
        exponent=exponent,
    )


def _vary(
    points: Sequence[CurvePoint], luck: float, misfit: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Curves that might have come out as well, (B, S) figures.

    Args:
        points: S points.
        luck: standard deviation of the figure over training sets of the last size.
        misfit: (S,) what the law is off by.
        rng: source of the draws.

    Returns:
        The curves on the same val images, and on others.
    """
    curves = np.empty((_RESAMPLES, len(points)))
    for place, point in enumerate(points):
        number = len(point.figures)
        curves[:, place] = point.figures[rng.integers(0, number, (_RESAMPLES, number))].mean(1)
    curves[:, -1] += luck * rng.standard_normal(_RESAMPLES)
    curves += misfit * rng.standard_normal(curves.shape)
    # The chance of the val images is the same for all sizes: (B, G) weights of what each part
    # changes.
    deviations = np.stack(
        [(p.without_part - p.without_part.mean(1, keepdims=True)).mean(0) for p in points]
    )
    parts = deviations.shape[1]
    chances = rng.standard_normal((_RESAMPLES, parts)) * np.sqrt((parts - 1) / parts)
    return curves, curves + chances @ deviations.T


def estimate_spread(points: Sequence[CurvePoint]) -> Floats:
    """Standard deviation of the figure over training sets of each size, also where there is one.

    Draws from the same images overlap, so their spread is divided by the square root of the
    fraction that each leaves out. It falls with the square root of the size.
    """
    sizes = np.array([point.images for point in points])
    found = [
        (p.figures.var(ddof=1) / (1 - p.images / sizes[-1]) * p.images, len(p.figures) - 1)
        for p in points
        if len(p.figures) > 1
    ]
    variance, freedom = np.array(found).T
    spread: Floats = np.sqrt(np.average(variance, weights=freedom) / sizes)
    return spread


def fit_law(
    sizes: Floats, errors: Floats, sigma: Floats, usual: Floats
) -> tuple[Floats, Floats, Floats]:
    """Fit errors = floor + scale * sizes^-exponent, floor and scale not negative.

    Args:
        sizes: (S,) numbers of images.
        errors: (B, S) errors of B curves.
        sigma: (S,) standard errors of them, for the weights.
        usual: (B,) exponents that are likely beforehand.

    Returns:
        (B,) floors, scales and exponents.
    """
    best = np.full(len(errors), np.inf)
    results = np.zeros((3, len(errors)))
    weights = 1 / sigma**2
    for exponent in _EXPONENTS:
        falling = sizes**-exponent
        mean_x, mean_y = np.average(falling, weights=weights), np.average(errors, 1, weights)
        moved = falling - mean_x
        scales = ((errors - mean_y[:, None]) * moved) @ weights / (moved**2 @ weights)
        scales = np.maximum(scales, 0)
        floors = mean_y - scales * mean_x
        # Where the floor would be negative, the law is a pure power.
        pure = errors @ (falling * weights) / (falling**2 @ weights)
        scales, floors = np.where(floors < 0, pure, scales), np.maximum(floors, 0)
        misfit = ((errors - floors[:, None] - scales[:, None] * falling) ** 2) @ weights
        misfit += ((exponent - usual) / _USUAL_SPREAD) ** 2
        better = misfit < best
        best = np.where(better, misfit, best)
        found = np.stack([floors, scales, np.full(len(errors), exponent)])
        results = np.where(better, found, results)
    return results[0], results[1], results[2]


def _range(value: float, values: Floats) -> Rate:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Rate(value, float(min(low, value)), float(max(high, value)))
