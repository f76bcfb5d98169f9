"""Documentation made from the config: the reference page, the JSON Schema, commented YAML."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnft import files
from mnft.config import describe
from mnft.config.source import dump_yaml

_REFERENCE_HEAD = """\
# Configuration reference

A config is a YAML file with the sections below. `--set section.key=value` overrides a key. A key
that you leave out has its default, or what the [recipe](training.md#the-recipe) chooses. Unknown
keys, wrong types and values out of range are refused; the message lists all of them, with lines.

Each run saves its resolved config as `config.yaml`, which trains the same run again. If the first
line of a config names `configs/schema.json`, as in the files of `configs/`, editors with a YAML
language server complete and check it.

(`python -m mnft.config.docs` generates this page from `mnft/config/`; a test checks that it is up
to date.)
"""


def render_reference() -> str:
    """Render docs/configuration.md."""
    parts = [_REFERENCE_HEAD, *_table(describe.top_keys())]
    for name, section in describe.sections().items():
        parts.append(f"\n## {name}\n\n{_one_line(section['description'])}\n")
        parts += _table(section["properties"])
    return "".join(parts)


def _table(properties: Mapping[str, Any]) -> list[str]:
    lines = ["\n| key | default | allowed | meaning |\n|---|---|---|---|\n"]
    for key, field in properties.items():
        default = _value(field["default"]) if "default" in field else "(required)"
        cells = [f"`{key}`", f"`{default}`" if default else "empty", describe.in_words(field)]
        cells.append(_one_line(field["description"]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return lines


def render_schema() -> str:
    """Render configs/schema.json."""
    return json.dumps(describe.json_schema(), indent=2, ensure_ascii=False) + "\n"


def render_config(values: Mapping[str, Any], head: Sequence[str]) -> str:
    """Render a commented config with every key; keys without a value are commented out.

    Args:
        values: a mapping of sections to mappings of keys to values; keys outside all sections
            stand in it directly.
        head: comment lines at the top.
    """
    lines = [f"# {_printable(line)}" for line in head]
    lines += ["", *_entries(describe.top_keys(), values, indent="")]
    for name, section in describe.sections().items():
        lines += ["", f"# {_one_line(section['description'])}", f"{name}:"]
        lines += _entries(section["properties"], values.get(name, {}), indent="  ")
    return "\n".join(lines) + "\n"


def _entries(properties: Mapping[str, Any], chosen: Mapping[str, Any], *, indent: str) -> list[str]:
    lines = []
    for key, field in properties.items():
        text, start = _one_line(field["description"]), f"{indent}# "
        lines += textwrap.wrap(text, 96, initial_indent=start, subsequent_indent=start)
        value = chosen.get(key, field.get("default"))
        lines.append(f"{indent}{'' if key in chosen else '# '}{key}: {_value(value)}".rstrip())
    return lines


def write_all(root: Path) -> None:
    """Write the generated files into the repository at `root`."""
    files.write_text(root / "docs" / "configuration.md", render_reference())
    files.write_text(root / "configs" / "schema.json", render_schema())


def _value(value: Any) -> str:
    """Format a value as one line of YAML; None as nothing."""
    if value is None:
        return ""
    return dump_yaml(value, one_line=True).removesuffix("\n...\n").strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _printable(text: str) -> str:
    """Replace characters that could end or spoil a comment; folder names may contain them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


if __name__ == "__main__":
    write_all(Path.cwd())
