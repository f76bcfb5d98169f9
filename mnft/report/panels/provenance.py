"""Where a model comes from: config, seeds, hashes, versions, and the command that repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from shlex import quote
from typing import Any

import yaml
from pydantic import BaseModel

from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.host import read_versions
from mnft.report.sources import Sources
from mnft.tasks.panels import Panel, Table, Text

_SHOWN = 80  # characters of a value


def build_provenance(sources: Sources) -> Panel:
    """Show what is needed to make the same model again."""
    run, bundle, manifest = sources.folder, sources.opened.bundle, sources.opened.manifest
    assert manifest is not None
    start: Mapping[str, Any] = next((e for e in sources.log if e.get("event") == "start"), {})
    config, _ = load_config(sources.opened.run.config)
    chosen = set(start.get("recipe", {}))
    written = sources.opened.run.written
    own = set(_flatten(yaml.safe_load(written.read_text()) or {})) if written.is_file() else set()
    rows = []
    defaults = Config.model_validate({"data": {"root": "."}})
    before, now = dict(_walk(defaults)), dict(_walk(config))
    for key, value in now.items():
        if value != before.get(key):
            who = "written" if key in own else "recipe" if key in chosen else "resolved"
            text = str(value) if len(str(value)) <= _SHOWN else f"{str(value)[:_SHOWN]}…"
            rows.append([key, text, who])
    facts = [
        ["architecture", bundle.architecture],
        ["weights at the start", str(start.get("weights", "–"))],
        ["parameters", f"{start['parameters']:,}" if "parameters" in start else "–"],
        ["seed", str(config.train.seed)],
        ["split", f"seed {config.data.split_seed}, fingerprint {manifest.fingerprint}"],
        ["weights, SHA-256", str(bundle.record.get("sha256", "–"))],
        ["mnft that trained it", str(bundle.record.get("mnft_version", "–"))],
        ["machine", f"{start.get('processor', '–')}, {start.get('precision', '–')}"],
        ["here", ", ".join(f"{k} {v}" for k, v in read_versions(("torch", "timm")).items())],
    ]
    repeat = written if written.is_file() else sources.opened.run.config
    lead = "What it takes to make this model again, and to know that it is the same."
    command = f"mnft train {quote(str(repeat))} --set run.name=again"
    return Panel(
        "provenance",
        "Provenance",
        lead,
        [
            Text("The same training again:", command=command),
            Table("Facts", ["what", "value"], facts),
            Table(
                "Config that differs from the defaults",
                ["key", "value", "from"],
                rows,
                folded=True,
            ),
            Text(f"The run is {run.resolve()}."),
        ],
    )


def _walk(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
