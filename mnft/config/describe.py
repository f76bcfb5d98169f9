"""What each config key allows, in words, for error messages and the documentation."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from mnft.config.schema import Config


@cache
def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config file."""
    return Config.model_json_schema()


def sections() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each section by name, in the order of the config."""
    schema = json_schema()
    return {
        name: schema["$defs"][value["$ref"].rsplit("/", 1)[-1]]
        for name, value in schema["properties"].items()
        if "$ref" in value
    }


def top_keys() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each key outside all sections."""
    return {k: v for k, v in json_schema()["properties"].items() if "$ref" not in v}


def key_paths() -> list[str]:
    """All keys of the config as `section.key`, or `key` outside all sections."""
    return [
        *top_keys(),
        *(f"{name}.{key}" for name, section in sections().items() for key in section["properties"]),
    ]


def expected(key_path: str) -> str | None:
    """The values a key allows, such as "an integer from 1 to 256, or 'auto'"; None if unknown."""
    section, _, key = key_path.partition(".")
    if not key and (field := top_keys().get(section)) is not None:
        return in_words(field)
    schema = sections().get(section)
    if schema is None:
        return None
    if not key:
        return f"a section with keys such as {', '.join(list(schema['properties'])[:3])}"
    field = schema["properties"].get(key)
    return None if field is None else in_words(field)


def branches(key_path: str) -> list[dict[str, Any]]:
    """The JSON Schema of each kind of value that a key allows; an empty one if it is unknown."""
    section, _, key = key_path.partition(".")
    field = sections().get(section, {}).get("properties", {}).get(key, {})
    field = top_keys().get(key_path, field)
    kinds: list[dict[str, Any]] = field.get("anyOf", [field])
    return kinds


def choices(key_path: str) -> list[str]:
    """The words that a key allows as values; empty if it allows none."""
    return [
        str(c)
        for b in branches(key_path)
        for c in b.get("enum", [b["const"]] if "const" in b else [])
    ]


def in_words(field: dict[str, Any]) -> str:
    """Describe the values that a JSON Schema property allows."""
    if "anyOf" in field:
        return ", or ".join(in_words(branch) for branch in field["anyOf"])
    if "const" in field:
        return repr(field["const"])
    if "enum" in field:
        return "one of " + ", ".join(str(value) for value in field["enum"])
    kind = field.get("type")
    if kind == "array":
        least, most = field.get("minItems"), field.get("maxItems")
        count = f"{least} to {most} " if least != most else f"{least} " if least else ""
        if most is None:
            count = "one or more " if least else ""
        if "enum" in field["items"]:
            return f"a list of {count}{in_words(field['items']).removeprefix('one ')}"
        item, space, limits = re.sub("^an? ", "", in_words(field["items"])).partition(" ")
        return f"a list of {count}{item}s{space}{limits}"
    names = {
        "integer": "an integer",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "null": "empty",
        "object": "a mapping",
    }
    return names.get(str(kind), "a value") + _range_in_words(field)


def _range_in_words(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = []
    if low is not None:
        parts.append(f"at least {low:g}")
    if above is not None:
        parts.append(f"above {above:g}")
    if high is not None:
        parts.append(f"at most {high:g}")
    if below is not None:
        parts.append(f"below {below:g}")
    return " " + " and ".join(parts) if parts else ""
