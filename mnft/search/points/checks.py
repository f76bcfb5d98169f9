"""The space of a config, checked by the schema before anything runs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

from mnft.config import describe
from mnft.config.load import suggest_key, validate
from mnft.config.schema import Config
from mnft.config.source import Source
from mnft.errors import ConfigError
from mnft.search.points.effects import find_override, find_refusal
from mnft.search.points.space import Dimension, Point, Space, flatten, read_dimension

# Rules over several keys are tried on so many combinations; the others are refused as they come.
_MAX_COMBINATIONS = 400


def apply(source: Source, point: Point) -> Source:
    """A copy of the source with the values of a point."""
    changed = copy.deepcopy(source)
    for key, value in point.items():
        changed.override(tuple(key.split(".")), value, f"--set {key}")
    return changed


def build_space(config: Config, source: Source) -> Space:
    """Read the space of a config, and try what it allows on the schema.

    Args:
        config: the config.
        source: the values as they were written, with the line of each key.

    Raises:
        ConfigError: keys or values that cannot be tried; the message lists all of them.
    """
    written = flatten(config.search.space)
    if not written:
        raise ConfigError(
            "found nothing to search over",
            hint="search.space names keys with values to try, such as optim.lr: [1e-3, 3e-3]; "
            "`mnft init IMAGES --search` writes one",
            key="search.space",
        )
    problems: list[str] = []
    dimensions: list[Dimension] = []
    for key, value in written.items():
        place = _find_place(source, key)
        try:
            dimensions.append(_read(key, value, place, config.search.method))
        except ValueError as error:
            problems.append(f"  {place}: search.space: {key}: {error}")
    problems += _try_points(dimensions, source)
    if problems:
        what = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise ConfigError("\n".join([f"{source.path or 'the command line'} has {what}", *problems]))
    return Space(tuple(dimensions))


def _find_place(source: Source, key: str) -> str:
    for path in (("search", "space", key), ("search", "space", *key.split("."))):
        if path in source.places:
            return source.places[path]
    return source.place(("search", "space")) or "line 1"


def _read(key: str, value: object, place: str, method: str) -> Dimension:
    if key not in describe.key_paths():
        raise ValueError(f"unknown key{suggest_key(key)}")
    if (why := find_refusal(key)) is not None:
        raise ValueError(f"cannot be searched over: {why}")
    dimension = read_dimension(key, value, place)
    if method == "grid" and dimension.choices is None:
        raise ValueError("found a range without step, expected step or a list for a grid")
    return dimension


def _try_points(dimensions: list[Dimension], source: Source) -> list[str]:
    """Values and combinations that the schema refuses, and keys that no point makes effective."""
    places = {dimension.key: dimension.place for dimension in dimensions}
    problems: dict[str, None] = {}
    asleep: dict[str, str | None] = {}
    for point in _list_points(dimensions):
        changed = copy.deepcopy(source)
        for key, value in point.items():
            changed.override(tuple(key.split(".")), value, places[key])
        try:
            config = validate(changed)
        except ConfigError as error:
            problems |= dict.fromkeys(error.message.splitlines()[1:])
            continue
        for key in places:
            why = find_override(key, config)
            asleep[key] = why if asleep.get(key, why) is not None else None
    if problems:
        return list(problems)
    return [
        f"  {places[key]}: search.space: {key}: has no effect, because {why}"
        for key, why in asleep.items()
        if why is not None
    ]


def _list_points(dimensions: list[Dimension]) -> Iterator[Point]:
    """All combinations where they are few; else every value, and those of each pair of keys."""
    keys = [dimension.key for dimension in dimensions]
    every = itertools.product(*(dimension.extremes for dimension in dimensions))
    few = list(itertools.islice(every, _MAX_COMBINATIONS + 1))
    if len(few) <= _MAX_COMBINATIONS:
        yield from (dict(zip(keys, values, strict=True)) for values in few)
        return
    first = {dimension.key: dimension.extremes[0] for dimension in dimensions}
    for dimension in dimensions:
        yield from ({**first, dimension.key: value} for value in dimension.extremes)
    for one, two in itertools.combinations(dimensions, 2):
        for a, b in itertools.product(one.extremes, two.extremes):
            yield {**first, one.key: a, two.key: b}
