"""What tells two searches apart: a search is continued only with the config that began it."""

from __future__ import annotations

from collections.abc import Mapping

from mnft.config.edge import AFTER_TRAINING
from mnft.config.schema import Config
from mnft.config.source import Source, dump_inline
from mnft.errors import ConfigError
from mnft.runs.resume import RESUMABLE
from mnft.search.points.space import Space

# May change between two calls of one search, beside what may change when a run is resumed.
_FREE = {"run", *AFTER_TRAINING}


def identify(
    config: Config, source: Source, space: Space, objectives: tuple[str, ...]
) -> dict[str, str]:
    """What makes this search another one if it changes, by keys of the config."""
    found = {
        f"search.{name}": dump_inline(getattr(config.search, name))
        for name in ("method", "seed", "rungs")
    }
    found["search.objectives"] = dump_inline(list(objectives))
    for key, what in space.describe().items():
        found[f"search.space: {key}"] = dump_inline(what)
    for section, values in source.values.items():
        if section in _FREE:
            continue
        for name, value in values.items() if isinstance(values, dict) else (("", values),):
            key = f"{section}.{name}".rstrip(".")
            if key not in RESUMABLE or key == "train.epochs":
                found[key] = dump_inline(value)
    return found


def check_same(known: Mapping[str, str], now: Mapping[str, str], place: str) -> None:
    """Refuse to continue the search of another config.

    Raises:
        ConfigError: naming what differs.
    """
    lines = [
        f"  {key}: {now.get(key, 'not written')}, was {known.get(key, 'not written')}"
        for key in sorted(known.keys() | now.keys())
        if known.get(key) != now.get(key)
    ]
    if lines:
        raise ConfigError(
            f"{place} holds another search of this name, with other values:\n" + "\n".join(lines),
            hint="put the values back to continue it, or begin another: --set search.name=NAME",
        )
