"""The 95% interval of a fraction."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

INTERVAL_LEVEL = 0.95


class Interval(NamedTuple):
    """A 95% interval."""

    low: float
    high: float


def compute_wilson_interval(num_correct: int, num_images: int) -> Interval:
    """Compute the 95% score interval of a fraction (Wilson 1927), low and high in [0, 1]."""
    fraction = num_correct / num_images
    z = NormalDist().inv_cdf((1 + INTERVAL_LEVEL) / 2)
    scale = 2 * (num_images + z**2)
    centre = (2 * num_correct + z**2) / scale
    margin = z / scale * math.sqrt(4 * num_correct * (1 - fraction) + z**2)
    # At the borders the two terms are equal; rounding must not leave anything beyond them.
    low = 0.0 if num_correct == 0 else centre - margin
    high = 1.0 if num_correct == num_images else centre + margin
    return Interval(low, high)
