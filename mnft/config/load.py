"""Config file and overrides to one validated config; every problem is reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mnft import files
from mnft.config import describe
from mnft.config.schema import Config
from mnft.config.source import MAX_BYTES, Source, parse_value, parse_yaml
from mnft.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[Config, Source]:
    """Read a config file, apply `section.key=value` overrides and validate the result.

    Args:
        path: the YAML file.
        overrides: values of `--set`, in order; a later one wins.

    Returns:
        The config, and the source that knows the line of each key.

    Raises:
        ConfigError: with every problem found, each with its line, what was found and what is
            allowed.
    """
    source = parse_yaml(_read_text(path), path)
    for override in overrides:
        _apply_override(source, override)
    return validate(source), source


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config; `load_config` reads it back to an equal config."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    files.write_text(path, text)


def validate(source: Source) -> Config:
    """Validate written values.

    Raises:
        ConfigError: with every problem found.
    """
    # An empty section (`optim:` and nothing below) means its defaults.
    values = {
        key: {} if value is None and key in describe.sections() else value
        for key, value in source.values.items()
    }
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = _problems(error, source)
    name = str(source.path) if source.path else "the config"
    count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    hint = "the configuration reference is docs/configuration.md"
    raise ConfigError("\n".join([f"{name} has {count}", *problems]), hint=hint)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a config (over {MAX_BYTES:,} bytes)")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        hint = "`mnft init IMAGES` writes a config for a folder of images"
        if path.parent.is_dir():
            beside = [p.name for p in path.parent.glob("*.y*ml")]
            if close := difflib.get_close_matches(path.name, beside, 1):
                hint = f"did you mean {path.parent / close[0]}?"
        raise ConfigError(f"{path}: no such config file", hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (expected YAML in UTF-8)") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _apply_override(source: Source, override: str) -> None:
    key_path, equals, text = override.partition("=")
    keys = key_path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override}: expected section.key=value", hint="for example --set optim.lr=3e-4"
        )
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    section = source.values
    for key in keys[:-1]:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {key} is a value, not a section")
    section[keys[-1]] = value
    source.places[tuple(keys)] = f"--set {override}"


def _problems(error: ValidationError, source: Source) -> list[str]:
    """One line a problem; the branches of a union that all failed are one problem."""
    found: dict[str, int] = {}
    for item in error.errors(include_url=False):
        loc = tuple(item["loc"])
        key_path = ".".join(str(part) for part in loc[:2])
        place = source.place(loc[:2]) or "line 1"
        what = _what(item, key_path)
        number = int(place.removeprefix("line ")) if place.startswith("line ") else MAX_BYTES
        found[f"  {place}: {key_path}: {what}" if key_path else f"  {what}"] = number
    return sorted(found, key=lambda line: found[line])


def _what(item: Any, key_path: str) -> str:
    if item["type"] == "extra_forbidden":
        return f"unknown key{_suggest_key(key_path)}"
    if item["type"] == "missing":
        return f"missing, expected {describe.expected(key_path)}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    found = item["input"]
    allowed = describe.expected(key_path) or "sections such as `data:`"
    if len(item["loc"]) > 2 and isinstance(item["loc"][2], int):
        return f"found {found!r} as item {item['loc'][2] + 1}, expected {allowed}"
    text = f"found {found!r}, expected {allowed}"
    if isinstance(found, str):
        close = difflib.get_close_matches(found, describe.choices(key_path), 1)
        text += f"; did you mean {close[0]}?" if close else ""
    return text


def _suggest_key(key_path: str) -> str:
    section, _, key = key_path.rpartition(".")
    known = describe.key_paths()
    siblings = {k.rpartition(".")[2]: k for k in known if k.startswith(f"{section}.")}
    if not section:
        siblings = {name: name for name in describe.sections()}
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for names, cutoff in ((elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.75)):
        if close := difflib.get_close_matches(key, list(names), 1, cutoff=cutoff):
            return f"; did you mean {names[close[0]]}?"
    return ""
