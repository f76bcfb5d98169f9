"""Read YAML into plain values with the line of every key; only the safe part that configs need."""

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
    """The values of a config as they were written, and where each was written.

    Attributes:
        values: nested dicts and lists.
        places: the place of each key path for messages: "line 7" or "--set optim.lr=1".
        path: the config file; None if all values come from the command line.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    path: Path | None = None

    def place(self, key_path: KeyPath) -> str | None:
        """The place of a key, or of the nearest section around it that was written.

        A section that exists only because `--set` gave another of its keys does not count: that
        flag has nothing to do with this key.
        """
        for length in range(len(key_path), 0, -1):
            if (place := self.places.get(key_path[:length])) is not None:
                return place
        below = (place for path, place in self.places.items() if path[: len(key_path)] == key_path)
        return next(below, None)

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Add the file, line and key to errors that name a config key."""
        try:
            yield
        except MnftError as error:
            if error.key is None:
                raise
            place = self.place(tuple(error.key.split(".")))
            if place is not None and place.startswith("--"):
                where = place
            else:
                file = [str(self.path), place or "default value"] if self.path else []
                where = ", ".join([*file, error.key])
            raise type(error)(f"{where}: {error.message}", hint=error.hint) from error

    def override(self, key_path: tuple[str, ...], value: Any, place: str) -> None:
        """Set a value, and forget the places of what it replaces.

        Args:
            key_path: the section and the key, or the key.
            value: the new value.
            place: where the value was written, for messages.

        Raises:
            ConfigError: the path leads through a value that is not a section.
        """
        section = self.values
        for length, key in enumerate(key_path[:-1], start=1):
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                parent = ".".join(key_path[:length])
                raise ConfigError(
                    f"{place}: {parent} is a value, it has no keys",
                    hint=f"set it whole: --set {parent}=VALUE",
                )
        length = len(key_path)
        self.places = {p: at for p, at in self.places.items() if p[:length] != key_path}
        section[key_path[-1]] = value
        self.places[key_path] = place


_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq")}
_INT_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_DECIMAL = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FRACTION = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_ODD_NUMBER = re.compile(
    r"^[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o?[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)$"
)
_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


def _resolvers() -> _Resolvers:
    """SafeLoader's rules, except that 1e-3 is a number (not only 1.0e-3) and 2026-01-31 a text."""
    resolvers: _Resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789":
        resolvers[first] = [*resolvers.get(first, []), (_FLOAT_TAG, _EXPONENT)]
    return resolvers


def _decimal_resolvers() -> _Resolvers:
    """The same rules, except that 0x10 (16), 010 (8), 0b11 (3) and 1:30 (90) are texts."""
    resolvers = {}
    for first, known in _resolvers().items():
        others = [(t, p) for t, p in known if t not in {_INT_TAG, _FLOAT_TAG} or p is _EXPONENT]
        resolvers[first] = [*others, (_INT_TAG, _DECIMAL), (_FLOAT_TAG, _FRACTION)]
    return resolvers


def is_odd_number(text: str) -> bool:
    """Whether a text is a number in a notation of YAML 1.1 that configs do not allow."""
    return bool(_ODD_NUMBER.match(text))


class _Loader(yaml.SafeLoader):
    """The YAML loader for configs."""

    yaml_implicit_resolvers = _decimal_resolvers()


class _Dumper(yaml.SafeDumper):
    """The YAML writer for configs. It quotes texts that any YAML loader takes for numbers."""

    yaml_implicit_resolvers = _resolvers()


def dump_yaml(values: Any, *, one_line: bool = False) -> str:
    """Write plain values as YAML that `parse_yaml` and `parse_value` read back."""
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=2**31 if one_line else 80,
    )
    return text


def dump_inline(value: Any) -> str:
    """Write a plain value on one line, as `--set key=TEXT` takes it."""
    return dump_yaml(value, one_line=True).removesuffix("\n...\n").strip()


def parse_yaml(text: str, path: Path) -> Source:
    """Read the text of a config file.

    Raises:
        ConfigError: the text is not YAML or not a mapping, has a key twice or an alias, or is
            nested too deep.
    """
    source = Source(path=path)
    try:
        node = _compose(text)
        if node is None:
            return source
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value[:40])
            raise _ProblemError(f"found {kind}, expected sections such as `data:`", _line(node))
        source.values = _read(node, (), source, set())
    except _ProblemError as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: {error}", hint=error.hint) from error
    return source


def parse_value(text: str) -> Any:
    """Read the value of `--set key=TEXT` as YAML; an empty one is None.

    Raises:
        ValueError: the text is not YAML, or holds something that config files may not hold.
    """
    node = _compose(text)
    return None if node is None else _read(node, (), Source(), set())


class _ProblemError(ValueError):
    """A problem of YAML text, with its line (from 1; None if unknown)."""

    def __init__(self, message: str, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.hint = hint


def _compose(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        what = f"not valid YAML: the character {chr(error.character)!r} is not allowed"
        raise _ProblemError(what, text.count("\n", 0, error.position) + 1) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        hint = "indent with spaces" if "'\\t'" in str(error.problem) else None
        line = mark.line + 1 if mark else None
        raise _ProblemError(f"not valid YAML: {error.problem}", line, hint) from error
    except RecursionError as error:
        raise _ProblemError("nested too deep") from error


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def _read(node: yaml.Node, key_path: KeyPath, source: Source, seen: set[int]) -> Any:
    is_scalar = isinstance(node, yaml.ScalarNode)
    if id(node) in seen or len(key_path) > MAX_DEPTH:
        what = "aliases (&name, *name)" if id(node) in seen else "such deep nesting"
        raise _ProblemError(f"configs may not contain {what}", _line(node))
    if node.tag not in (_Loader.yaml_constructors if is_scalar else _PLAIN_TAGS):
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _ProblemError(f"configs may not contain the tag {tag}", _line(node))
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise _ProblemError("keys must be plain words", _line(key_node))
            path = (*key_path, key)
            if key in values:
                raise _ProblemError(
                    f"the key {'.'.join(map(str, path))} is given twice, first in "
                    f"{source.places[path]}",
                    _line(key_node),
                    hint="remove one of them",
                )
            source.places[path] = f"line {_line(key_node)}"
            values[key] = _read(value_node, path, source, seen)
        return values
    source.places.setdefault(key_path, f"line {_line(node)}")
    if isinstance(node, yaml.SequenceNode):
        return [_read(n, (*key_path, i), source, seen) for i, n in enumerate(node.value)]
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        shown = node.value if len(node.value) <= 40 else node.value[:40] + "..."
        raise _ProblemError(f"{shown!r} cannot be read as a value", _line(node)) from error
    finally:
        loader.dispose()
