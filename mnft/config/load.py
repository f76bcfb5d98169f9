"""Load a config file and overrides into one validated config; report all problems at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mnft import files
from mnft.config import describe
from mnft.config.edge import AFTER_TRAINING
from mnft.config.schema import Config
from mnft.config.source import (
    MAX_BYTES,
    Source,
    dump_inline,
    dump_yaml,
    is_odd_number,
    parse_value,
    parse_yaml,
)
from mnft.errors import ConfigError

_SHOWN_CHARS = 80


# Names of these keys in other tools.
_OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "optimizer": "optim.name",
    "scheduler": "schedule.name",
    "num_epochs": "train.epochs",
    "batch": "train.batch_size",
    "amp": "train.precision",
    "patience": "train.early_stopping",
    "grad_accum": "train.accumulation_steps",
    "num_workers": "data.workers",
    "imgsz": "data.img_size",
    "image_size": "data.img_size",
    "input_size": "data.img_size",
    "data_dir": "data.root",
    "path": "data.root",
    "arch": "model.name",
    "weights": "model.pretrained",
}


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> tuple[Config, Source]:
    """Read a config file, apply `section.key=value` overrides and validate the result.

    Args:
        path: the YAML file; None to start from an empty config.
        overrides: the values of `--set`, in order; a later one wins.

    Returns:
        The config, and its source, which knows the line of each key.

    Raises:
        ConfigError: the config has problems. The message lists all of them, each with its line,
            what was found and what is allowed.
    """
    source = Source() if path is None else parse_yaml(_read_text(path), path)
    for override in overrides:
        key_path, equals, text = override.partition("=")
        keys = key_path.strip().split(".")
        place = f"--set {override}"
        if not equals or not all(keys):
            hint = "for example --set optim.lr=3e-4"
            raise ConfigError(f"{place}: expected section.key=value", hint=hint)
        try:
            value = parse_value(text)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from error
        source.override(tuple(keys), value, place)
    return validate(source), source


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config; `load_config` reads an equal config back.

    In the sections about the trained model only values that differ from the defaults are written.
    They do not affect training, and a later version of mnft may have better defaults.
    """
    values = config.model_dump()
    for name in AFTER_TRAINING:
        values[name] = getattr(config, name).model_dump(exclude_defaults=True)
    files.write_text(path, dump_yaml({key: value for key, value in values.items() if value != {}}))


def validate(source: Source) -> Config:
    """Validate the values of a source.

    Raises:
        ConfigError: the values have problems; the message lists all of them.
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
    typed = all(problem.lstrip().startswith("--") for problem in problems)
    name = "the command line" if typed or not source.path else str(source.path)
    count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    hint = "the configuration reference is docs/configuration.md"
    raise ConfigError("\n".join([f"{name} has {count}", *problems]), hint=hint)


def find_key(name: str, *, prefer: str = "", cutoff: float = 1.0) -> str | None:
    """Find the key that a word means, such as epochs, batch-size, optim.lr or model.

    Args:
        name: the word, with `-` or `_`.
        prefer: the section to prefer if several have a key of that name.
        cutoff: the similarity that a key must have to the word, up to 1.0 for equality.
    """
    keys = describe.key_paths()
    keys.sort(key=lambda key: key.partition(".")[0] != prefer)
    names = {key: key for key in keys}
    for key in keys:
        names.setdefault(key.rpartition(".")[2], key)
    names = _OTHER_NAMES | {"model": "model.name", "data": "data.root", "output": "run.dir"} | names
    close = difflib.get_close_matches(name.replace("-", "_"), list(names), 1, cutoff=cutoff)
    return names[close[0]] if close else None


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large, expected a config of at most 1,000,000 bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        hint = "`mnft init IMAGES` writes a config for a folder of images"
        if path.parent.is_dir():
            beside = [p.name for p in path.parent.glob("*.y*ml")]
            if close := difflib.get_close_matches(path.name, beside, 1):
                hint = f"did you mean {path.parent / close[0]}?"
        raise ConfigError(f"{path}: no such config file", hint=hint) from error
    except IsADirectoryError as error:
        hint = f"`mnft init {path}` writes a config for a folder of images"
        if (path / "config.yaml").is_file():
            hint = f"mnft train --resume {path} continues this run"
        raise ConfigError(f"{path}: is a folder, expected a YAML config", hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file, expected YAML in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _problems(error: ValidationError, source: Source) -> list[str]:
    """Describe each problem in one line; a union of which all branches failed is one problem."""
    found: dict[str, int] = {}
    for item in error.errors(include_url=False):
        loc = tuple(item["loc"])
        what = _what(item, ".".join(str(part) for part in loc[:2]))
        if item["type"] == "value_error" and len(loc) < 2:
            # The message of a rule over several keys starts with the key to blame.
            key, _, what = what.partition(": ")
            loc = tuple(key.split("."))
        key_path = ".".join(str(part) for part in loc[:2])
        place = source.place(loc[:2]) or "line 1"
        number = int(place.removeprefix("line ")) if place.startswith("line ") else MAX_BYTES
        found[f"  {place}: {key_path}: {what}"] = number
    return sorted(found, key=lambda line: found[line])


def _what(item: Any, key_path: str) -> str:
    if item["type"] == "extra_forbidden":
        return f"unknown key{suggest_key(key_path)}"
    if item["type"] == "missing":
        return f"missing, expected {describe.expected(key_path)}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    found = item["input"]
    allowed = describe.expected(key_path) or "sections such as `data:`"
    if len(item["loc"]) > 2 and isinstance(item["loc"][2], int):
        return f"found {_show(found)} as item {item['loc'][2] + 1}, expected {allowed}"
    return f"found {_show(found)}, expected {allowed}{_suggest_value(found, key_path)}"


def _show(value: Any) -> str:
    """Format a value as YAML, shortened."""
    text = repr(value) if isinstance(value, str) else dump_inline(value)
    text = "nothing" if value is None else text
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _suggest_value(value: Any, key_path: str) -> str:
    if isinstance(value, str):
        close = difflib.get_close_matches(value.lower(), describe.choices(key_path), 1)
        if close:
            return f"; did you mean {close[0]}?"
        if is_odd_number(value):
            return "; numbers are decimal, without leading zeros"
        try:
            if isinstance(parse_value(value), int | float):
                return f"; did you mean {value} without quotes?"
        except ValueError:
            pass
    elif isinstance(value, int | float) and "a text" in str(describe.expected(key_path)):
        return "; a text that looks like something else needs quotes"
    return ""


def suggest_key(key_path: str) -> str:
    """The end of a message about an unknown key: which one was probably meant, or nothing."""
    section, _, key = key_path.rpartition(".")
    known = describe.key_paths()
    siblings = {k.rpartition(".")[2]: k for k in known if k.startswith(f"{section}.")}
    if not section:
        siblings = {name: name for name in describe.sections()}
    elsewhere = _OTHER_NAMES | {k.rpartition(".")[2]: k for k in reversed(known)}
    for names, cutoff in ((elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.75)):
        if close := difflib.get_close_matches(key, list(names), 1, cutoff=cutoff):
            return f"; did you mean {names[close[0]]}?"
    return ""
