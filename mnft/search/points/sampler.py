"""Which point a trial tries: our own points for grid and random, Optuna's samplers for the rest."""

from __future__ import annotations

import random
import warnings
from functools import cache
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from mnft.config.source import dump_inline
from mnft.search.points.space import Dimension, Space
from mnft.seeding import derive_seed

_POPULATIONS = 5  # generations of NSGA-II in a search, so that some learn from others


class Points:
    """The points of `grid` and `random`: point k is a function of the seed and k.

    Optuna's own samplers draw from the state of a process, so two workers try the same points
    (RandomSampler), or repeat some (GridSampler).

    Args:
        space: what may be tried.
        method: "grid" or "random".
        seed: seed of the order or of the draws.
    """

    def __init__(self, space: Space, method: str, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._drawn: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._order: list[int] | None = None
        if method == "grid":
            assert space.size is not None
            # Not row by row: a grid that is cut short has then tried every value of each key.
            self._order = random.Random(derive_seed(seed)).sample(range(space.size), space.size)

    def point(self, number: int) -> dict[str, Any]:
        """The point of a trial's number, which must be below the size of the space."""
        if self._order is not None:
            return self._space.point(self._order[number])
        while len(self._drawn) <= number:
            self._drawn.append(self._draw(len(self._drawn)))
        return self._drawn[number]

    def _draw(self, number: int) -> dict[str, Any]:
        """Draw the next point, again for as long as an earlier one has it."""
        attempt = 0
        while True:
            point = self._space.draw(random.Random(derive_seed(self._seed, number, attempt)))
            text = dump_inline(list(point.values()))
            if text not in self._seen:
                self._seen.add(text)
                return point
            attempt += 1


class PointSampler(BaseSampler):
    """Gives a trial the point of its number."""

    def __init__(self, space: Space, points: Points) -> None:
        self._space = space
        self._points = points

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """All dimensions."""
        return {d.key: build_distribution(d) for d in self._space.dimensions}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """The point of the trial's number."""
        return self._space.encode(self._points.point(trial.number))

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        """One value of that point."""
        return self._space.encode(self._points.point(trial.number))[param_name]


@cache
def build_distribution(dimension: Dimension) -> BaseDistribution:
    """The dimension in Optuna's words."""
    if dimension.choices is not None:
        return CategoricalDistribution([dump_inline(value) for value in dimension.choices])
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)


def build_sampler(
    method: str,
    space: Space,
    points: Points | None,
    *,
    seed: int,
    trials: int | None,
) -> BaseSampler:
    """Build the sampler of one trial.

    Args:
        method: `search.method`.
        space: what may be tried.
        points: the points of grid and random; None for other methods.
        seed: seed of this trial, so that workers do not draw alike.
        trials: number of trials of the search, or None.
    """
    if points is not None:
        return PointSampler(space, points)
    with warnings.catch_warnings():
        # The Gaussian process and the constant liar are called experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        seed %= 2**32
        if method == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if method == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        population = max(4, min(50, (trials or 50) // _POPULATIONS))
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
