"""The pages for people are finished, their links and paths exist, and every command is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))


def test_there_are_pages_and_configs() -> None:
    assert len(PAGES) >= 6
    assert len(CONFIGS) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_finished_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b[A-Z]+_(SESSION|TABLE)\b|TODO|FIXME|@@", text)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_config_says_what_was_measured(config: Path) -> None:
    assert "# Result:" in config.read_text() or "Result: not measured here" in config.read_text()


def test_the_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w/]+(?:/|\.(?:py|md|toml)))`", text)
    assert len(paths) > 20
    folders = [ROOT, ROOT / "mnft", ROOT / "mnft/tasks/classify"]
    missing = [path for path in paths if not any((folder / path).exists() for folder in folders)]
    assert missing == []


def test_the_readme_names_every_command() -> None:
    from typer.main import get_command

    from mnft.cli.app import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(get_command(app).commands) - {"data"}:
        assert f"`mnft {name}" in readme, name
    for name in get_command(app).commands["data"].commands:
        assert f"`mnft data {name}" in readme, name
