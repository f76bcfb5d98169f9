"""The points of a search: what its config says, as keys with choices and ranges."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mnft.config import describe
from mnft.config.source import dump_inline, parse_value

Point = Mapping[str, Any]
_RANGE = ("low", "high", "log", "step")
_MANY = 100


@dataclass(frozen=True, slots=True)
class Dimension:
    """One key of the config, and what is tried for it.

    Attributes:
        key: the key, as "optim.lr".
        place: where it was written, for messages.
        choices: all values; None for a range.
        low: smallest value of a range.
        high: largest value of a range.
        log: whether the range is even in the logarithm.
        integer: whether the range is of whole numbers.
    """

    key: str
    place: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that must be allowed for all of them to be."""
        if self.choices is None:
            return (self.low, self.high)
        # So many are the steps of a range.
        return self.choices if len(self.choices) <= _MANY else (self.choices[0], self.choices[-1])

    def draw(self, generator: random.Random) -> Any:
        """Draw a value."""
        if self.choices is not None:
            return self.choices[generator.randrange(len(self.choices))]
        if self.integer and not self.log:
            return generator.randint(int(self.low), int(self.high))
        # Whole numbers have an interval of 1 each, also at both ends of the range.
        half = 0.5 if self.integer else 0.0
        low, high = self.low - half, self.high + half
        if self.log:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            value = generator.uniform(low, high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value


@dataclass(frozen=True, slots=True)
class Space:
    """All that a search may try."""

    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> int | None:
        """The number of points; None where a range has no step."""
        sizes = []
        for dimension in self.dimensions:
            if dimension.choices is not None:
                sizes.append(len(dimension.choices))
            elif dimension.integer:
                sizes.append(int(dimension.high) - int(dimension.low) + 1)
            else:
                return None
        return math.prod(sizes)

    def point(self, index: int) -> dict[str, Any]:
        """The point of a number below `size`, where every dimension has choices."""
        values = {}
        for dimension in reversed(self.dimensions):
            assert dimension.choices is not None
            index, place = divmod(index, len(dimension.choices))
            values[dimension.key] = dimension.choices[place]
        return {dimension.key: values[dimension.key] for dimension in self.dimensions}

    def draw(self, generator: random.Random) -> dict[str, Any]:
        """Draw a point."""
        return {dimension.key: dimension.draw(generator) for dimension in self.dimensions}

    def encode(self, point: Point) -> dict[str, Any]:
        """The point as Optuna keeps it: a choice is its text, which no storage changes."""
        return {
            dimension.key: point[dimension.key]
            if dimension.choices is None
            else dump_inline(point[dimension.key])
            for dimension in self.dimensions
        }

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The point that Optuna kept."""
        return {
            dimension.key: params[dimension.key]
            if dimension.choices is None
            else parse_value(params[dimension.key])
            for dimension in self.dimensions
        }

    def describe(self) -> dict[str, Any]:
        """The space as plain values, by which two searches are told apart."""
        return {
            dimension.key: [dump_inline(value) for value in dimension.choices]
            if dimension.choices is not None
            else {"low": dimension.low, "high": dimension.high, "log": dimension.log}
            for dimension in self.dimensions
        }


def list_overrides(point: Point) -> list[str]:
    """The point as values of `--set`."""
    return [f"{key}={dump_inline(value)}" for key, value in point.items()]


def describe_point(point: Point) -> str:
    """The point for people, with short keys and figures."""
    shown = []
    for key, value in point.items():
        text = f"{value:.3g}" if isinstance(value, float) else dump_inline(value)
        shown.append(f"{key.removesuffix('.name').rpartition('.')[2]}={text}")
    return " ".join(shown)


def read_dimension(key: str, written: object, place: str) -> Dimension:
    """Read a list as a choice and {low, high, log, step} as a range.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(written, list):
        if not written:
            raise ValueError("found an empty list, expected values to try")
        texts = [dump_inline(value) for value in written]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise ValueError(f"found {twice} twice, expected each value once")
        return Dimension(key, place, tuple(written))
    if not isinstance(written, dict) or not {"low", "high"} <= written.keys() <= set(_RANGE):
        raise ValueError(
            f"found {dump_inline(written)}, expected a list of values, or a range such as "
            "{low: 1e-4, high: 1e-2, log: true}"
        )
    low, high, step = (written.get(name) for name in ("low", "high", "step"))
    log = written.get("log", False)
    for name, value in (("low", low), ("high", high), ("step", step)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number and not (name == "step" and value is None):
            raise ValueError(f"{name}: found {dump_inline(value)}, expected a number")
    if not isinstance(log, bool):
        raise ValueError(f"log: found {dump_inline(log)}, expected true or false")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low >= high:
        raise ValueError(f"found low {low:g} and high {high:g}, expected low below high")
    if log and low <= 0:
        raise ValueError(f"found low {low:g}, expected more than 0 with log: true")
    if log and step is not None:
        raise ValueError("found log and step, expected one of them; a list takes any values")
    if step is not None:
        return Dimension(key, place, _list_steps(low, high, step))
    whole = isinstance(low, int) and isinstance(high, int)
    kinds = {branch.get("type") for branch in describe.branches(key)}
    return Dimension(key, place, None, low, high, log=log, integer=whole and "number" not in kinds)


def _list_steps(low: float, high: float, step: float) -> tuple[Any, ...]:
    if step <= 0 or (high - low) / step > 10_000:
        raise ValueError(f"step: found {step:g}, expected at most 10,000 steps from low to high")
    whole = all(isinstance(value, int) for value in (low, high, step))
    # In decimals: 0.1 + 0.2 is to be 0.3.
    start, stride = Decimal(str(low)), Decimal(str(step))
    number = int((Decimal(str(high)) - start) / stride) + 1
    values = [start + index * stride for index in range(number)]
    return tuple(int(value) if whole else float(value) for value in values)


def flatten(space: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with their sections: `--set search.space.optim.lr=[...]` nests them."""
    flat: dict[str, Any] = {}
    for key, written in space.items():
        if "." not in key and isinstance(written, dict) and not {"low", "high"} & written.keys():
            flat |= {f"{key}.{name}": value for name, value in written.items()}
        else:
            flat[key] = written
    return flat
