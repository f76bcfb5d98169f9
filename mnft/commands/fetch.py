"""`mnft data fetch`: bring a known data set as an image folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mnft import console
from mnft.data.fetch import catalog
from mnft.errors import ConfigError


def run(
    name: str | None, source: Path | None, to: Path | None, *, show: bool, as_json: bool
) -> None:
    """Fetch a data set, or list those that are known."""
    if show:
        infos = [catalog.describe(name) for name in catalog.names()]
        if as_json:
            console.show_json({"datasets": [asdict(info) for info in infos]})
            return
        console.show_table(
            ["name", "images", "classes", "download", "splits", "what"],
            [
                [
                    info.name,
                    f"{info.num_images:,}",
                    info.num_classes,
                    f"{info.download_mb:,.0f} MB",
                    info.splits,
                    info.title,
                ]
                for info in infos
            ],
        )
        return
    if name is None:
        raise ConfigError(
            "missing the NAME of a data set", hint=f"one of {', '.join(catalog.names())}"
        )
    to = to or Path("data") / name
    folder = catalog.fetch(name, to, source=source, reporter=console.REPORTER)
    if as_json:
        console.show_json({"name": name, "folder": str(folder)})
        return
    console.note(f"next: mnft init {folder}, or mnft train with data.root: {folder}")
    console.show_data(str(folder))
