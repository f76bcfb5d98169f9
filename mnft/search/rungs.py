"""Which trials stop early: at each rung the worse two thirds (successive halving).

A trial is compared with those that reached the rung before it, as in Li et al., "A System for
Massively Parallel Hyperparameter Tuning" (2020): nobody waits for others, and the decision follows
from what the storage holds. With two objectives Optuna has no such rule; here a trial that no other
one dominates goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

_KEPT = 3  # one in so many


def goes_on(own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether a trial goes on after a rung.

    Args:
        own: the trial's objectives at the rung, signed so that higher is better.
        others: those of the trials that were there before.
    """
    kept = max(1, (len(others) + 1) // _KEPT)
    better = [other for other in others if _rank(own, others) > _rank(other, [*others, own])]
    if len(own) > 1:
        return len(better) < kept or _rank(own, others) == 0
    return sum(other[0] > own[0] for other in others) < kept


def _rank(own: Sequence[float], others: Sequence[Sequence[float]]) -> int:
    """How many others dominate a trial; 0 on the Pareto front."""
    return sum(dominates(other, own) for other in others)


def dominates(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether a trial is as good as another one in all objectives, and better in some."""
    pairs = list(zip(one, two, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def find_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Positions of the points that no other one dominates, in their order."""
    return [
        place
        for place, point in enumerate(points)
        if not any(dominates(other, point) for other in points)
    ]
