"""Panels to one HTML file that needs nothing else: no request, no font, no library."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import mnft
from mnft.report.album import Album
from mnft.report.page.chart import draw, format_value
from mnft.tasks.panels import Chooser, Panel, Text, Verdict

_FOLDER = Path(__file__).parent
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says.

    Attributes:
        title: heading of the page.
        subtitle: a line below it.
        verdict: the evaluation in short, or None.
        missing: what the verdict lacks, with the command that makes it, or None.
        panels: the panels in order.
        album: the pictures.
        written: when it was made.
    """

    title: str
    subtitle: str
    verdict: Verdict | None
    panels: Sequence[Panel]
    album: Album = field(default_factory=Album)
    missing: Text | None = None
    written: datetime | None = None


def render(page: Page) -> str:
    """Write a page as HTML, UTF-8 without characters that XML forbids.

    A content security policy lets no request leave the page, and no script run but the one whose
    hash it names; all text of others is escaped.
    """
    script = _read("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = (
        _open_environment()
        .get_template("page.html")
        .render(
            page=page,
            style=Markup(_read("style.css")),
            script=Markup(script),
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            version=mnft.__version__,
        )
    )
    return _clean(html)


@cache
def _open_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.globals.update(draw=draw, format_value=format_value, describe_steps=_describe_steps)
    return environment


def _describe_steps(chooser: Chooser) -> list[Mapping[str, str]]:
    """The steps as texts, so that the table and the script cannot round differently."""
    return [
        {
            "t": f"{threshold:.2f}",
            "away": f"{1 - kept / max(1, chooser.total):.1%}",
            "kept": f"{kept:,}",
            "right": f"{right / kept:.1%}" if kept else "–",
        }
        for threshold, kept, right in chooser.steps
    ]


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _clean(text: str) -> str:
    """Show what no page can hold: control characters, and bytes of names that are not UTF-8."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
