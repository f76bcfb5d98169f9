"""The model card: the report's figures as Markdown, with front matter for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

import mnft
from mnft import files
from mnft.errors import ConfigError
from mnft.report.build import Report
from mnft.report.sources import Sources
from mnft.tasks.panels import Cell, Panel, Table, Text
from mnft.text import printable

CARD = "README.md"
# The card of an earlier report has this line; a page that a person wrote has not.
_MARK = "<!-- mnft report writes this page again; take this line out to keep your changes -->"
_MAX_ROWS = 50


def write_card(sources: Sources, report: Report) -> Path | None:
    """Write the model card into the model folder.

    Returns:
        The file; None where the folder has a README.md that a person wrote, which stays.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = sources.opened.bundle.folder / CARD
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    try:
        files.write_text(path, format_card(sources, report))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return path


def format_card(sources: Sources, report: Report) -> str:
    """The model card as Markdown; text of others cannot become markup."""
    bundle, page = sources.opened.bundle, report.page
    front = {key: value for key, value in _describe(sources, report).items() if value}
    dumped = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    lines = ["---", dumped.rstrip(), "---", "", _MARK, "", f"# {_escape(page.title)}", ""]
    lines += [f"{_escape(page.subtitle)}.", ""]
    if verdict := page.verdict:
        lines += [
            f"**{verdict.title} {verdict.figure}** (95% interval {verdict.low} to {verdict.high}). "
            f"{_escape(verdict.sentence)}",
            "",
            *(f"- {_escape(name)}: {_escape(value)}" for name, value in verdict.beside.items()),
            "",
        ]
        if verdict.warnings:
            lines += ["## What to know before you trust it", ""]
            lines += [*(f"- {_escape(warning)}" for warning in verdict.warnings), ""]
    elif page.missing:
        lines += [f"{_escape(page.missing.text)} `{page.missing.command}`", ""]
    lines += ["## Use", "", *_show_use(sources), ""]
    for panel in page.panels:
        lines += _format_panel(panel)
    names = ", ".join(_escape(name) for name in bundle.labels[:_MAX_ROWS])
    more = len(bundle.labels) - _MAX_ROWS
    lines += ["## Outputs", "", names + (f" and {more:,} more" if more > 0 else ""), ""]
    lines += [f"Written by mnft {mnft.__version__} beside report.html, which shows the images."]
    return printable("\n".join(lines) + "\n")


def _describe(sources: Sources, report: Report) -> dict[str, Any]:
    """The front matter; see huggingface.co/docs/hub/model-cards."""
    described: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": report.task.pipeline_tag if report.task else None,
        "tags": [*([report.task.pipeline_tag] if report.task else []), "timm", "mnft"],
        "metrics": list(report.task.hub_metrics) if report.task else None,
    }
    if report.task and (manifest := sources.opened.manifest):
        name = printable(manifest.root.name)
        described["model-index"] = [
            {
                "name": printable(report.page.title),
                "results": [
                    {
                        "task": {"type": report.task.pipeline_tag},
                        "dataset": {"name": name, "type": "imagefolder", "split": sources.split},
                        "metrics": [
                            {"type": kind, "value": round(value, 6)}
                            for kind, value in report.task.hub_metrics.items()
                        ],
                    }
                ],
            }
        ]
    return described


def _show_use(sources: Sources) -> list[str]:
    preprocessing = sources.opened.bundle.preprocessing
    folder = printable(str(sources.opened.bundle.folder))
    height, width = preprocessing.input_size[1:]
    return [
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
        "",
        f"Or `mnft predict --ckpt {quote(folder)} IMAGES`. Images become {width} x {height} "
        f"pixels ({preprocessing.crop_mode}, {preprocessing.interpolation}, crop_pct "
        f"{preprocessing.crop_pct:g}); the names of the outputs are `label_names` in config.json.",
    ]


def _format_panel(panel: Panel) -> Iterator[str]:
    """The texts and the chosen tables of a panel; nothing of one that has neither."""
    tables = [block for block in panel.blocks if isinstance(block, Table) and block.in_card]
    missing = [b for b in panel.blocks if isinstance(b, Text) and b.kind in {"missing", "warning"}]
    if not tables and not missing:
        return
    yield from (f"## {_escape(panel.title)}", "")
    for table in tables:
        yield from _format_table(table)
    for block in missing:
        command = f" `{block.command}`" if block.command else ""
        yield from (f"{_escape(block.text)}{command}", "")


def _format_table(table: Table) -> Iterator[str]:
    yield from (f"{_escape(table.title)}:", "")
    shown: Sequence[Sequence[Cell | str]] = table.rows[:_MAX_ROWS]
    yield _join(table.headings)
    yield "| --- " * len(table.headings) + "|"
    for row in shown:
        yield _join([cell if isinstance(cell, str) else cell.text for cell in row])
    if len(table.rows) > len(shown):
        yield from ("", f"{len(table.rows) - len(shown):,} more rows are in report.html.")
    yield ""


def _join(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    """Text in one line that Markdown shows as it is."""
    line = " ".join(printable(text).split())
    for character in "\\`*_[]<>|#":
        line = line.replace(character, f"\\{character}")
    return line
