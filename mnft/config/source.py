"""YAML text to plain values, with the line of every key; the safe subset that configs need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mnft.errors import ConfigError, MnftError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

KeyPath = tuple[str | int, ...]


@dataclass
class Source:
    """Values as they were written, and where each of them was written.

    Attributes:
        values: nested dicts and lists.
        places: for each key path the place a person looks at: "line 7" or "--set optim.lr=1".
        path: the config file; None when the values come from the command line alone.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    path: Path | None = None

    def place(self, key_path: KeyPath) -> str | None:
        """The place of a key, or of the nearest written section that holds it."""
        for length in range(len(key_path), 0, -1):
            if (place := self.places.get(key_path[:length])) is not None:
                return place
        return None

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Put the file, line and key in front of errors that name a config key."""
        try:
            yield
        except MnftError as error:
            if error.key is None:
                raise
            place = self.place(tuple(error.key.split(".")))
            where = [str(self.path)] if self.path else []
            where += [place or "default value", error.key]
            raise type(error)(f"{', '.join(where)}: {error.message}", hint=error.hint) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as the number it is (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, path: Path) -> Source:
    """Read a config file's text.

    Raises:
        ConfigError: not YAML, not a mapping, a key twice, an alias, or nested too deep.
    """
    source = Source(path=path)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep") from error
    if node is None:
        return source
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: expected sections such as `data:`"
        )
    source.values = _read(node, (), source, set())
    return source


def parse_value(text: str) -> Any:
    """The value of `--set key=TEXT`, read as YAML.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: no objects are made


def _read(node: yaml.Node, key_path: KeyPath, source: Source, seen: set[int]) -> Any:
    place = f"line {node.start_mark.line + 1}"
    if id(node) in seen or len(key_path) > MAX_DEPTH:
        what = "aliases (&name, *name)" if id(node) in seen else "such deep nesting"
        raise ConfigError(f"{source.path}, {place}: configs have no use for {what}")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return _read_mapping(node, key_path, source, seen)
    source.places.setdefault(key_path, place)
    if isinstance(node, yaml.SequenceNode):
        return [_read(n, (*key_path, i), source, seen) for i, n in enumerate(node.value)]
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source.path}, {place}: {error}") from error
    finally:
        loader.dispose()


def _read_mapping(
    node: yaml.MappingNode, key_path: KeyPath, source: Source, seen: set[int]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"line {key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key, str) or key in values:
            what = f"the key {key} stands twice" if isinstance(key, str) else "keys are plain words"
            raise ConfigError(f"{source.path}, {place}: {what}")
        source.places[(*key_path, key)] = place
        values[key] = _read(value_node, (*key_path, key), source, seen)
    return values
