"""The page in a real browser: headless Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.reports import NAMES, build_page

from mnft.report.page.render import render

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield opened
        opened.close()


class Opened:
    """A page that was opened, and all that left it or went wrong."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append(dialog.message))
        self.page.goto(path.as_uri())

    def check_quiet(self, path: Path) -> None:
        fetched = [url for url in self.requests if not url.startswith("data:")]
        assert fetched == [path.as_uri()]
        assert self.messages == []


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(build_page()), encoding="utf-8")
    return file


def test_it_works_and_fetches_nothing(browser: Any, path: Path) -> None:
    """Sorting, filtering by a cell, heat maps, the slider; nothing is asked of any network."""
    opened = Opened(browser, path)
    page = opened.page
    shown = page.locator(".shot:visible")
    assert shown.count() == 12
    page.locator(".matrix a[data-group='0-1']").click()
    assert shown.count() == 3
    assert page.locator(".status").inner_text() == "3 of 12 shown"
    assert {e.get_attribute("data-group") for e in shown.all()} == {"0-1"}
    page.locator(".filter").select_option("")
    assert shown.count() == 12

    def column(number: int) -> list[str]:
        cells = page.locator(f"table.sortable tbody tr > :nth-child({number})")
        return [text.strip() for text in cells.all_inner_texts()]

    button = page.locator("table.sortable th:nth-child(2) button")
    button.click()
    assert column(2) == sorted(column(2), key=int, reverse=True)
    button.press("Enter")  # by keyboard, and the other way round
    assert column(2) == sorted(column(2), key=int)
    heading = page.locator("table.sortable th:nth-child(2)")
    assert heading.get_attribute("aria-sort") == "ascending"

    heat = page.locator(".heat").first
    assert not heat.is_visible()
    page.locator(".heat-switch").check()
    assert heat.is_visible()

    slider = page.locator("input[type=range]")
    assert "Below 0.80: 60.0% of the images go to a person. Of the other 160" in said(page)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert "Below 0.81" in said(page)
    slider.fill("0")
    assert "Below 0.00: 0.0%" in said(page)
    assert "Of the other 400, 97.5% are right" in said(page)
    opened.check_quiet(path)


def said(page: Any) -> str:
    text: str = page.locator(".chooser .slide .said").inner_text()
    return text


def test_it_works_without_script(browser: Any, path: Path) -> None:
    opened = Opened(browser, path, java_script_enabled=False)
    page = opened.page
    assert page.locator(".shot:visible").count() == 12
    assert page.locator(".control:visible").count() == 0  # nothing that would do nothing
    assert page.locator(".chooser td:visible").count() == 21
    page.locator(".matrix a").first.click()
    assert page.url.endswith("#group-0-1")
    page.locator(".heat-switch").check()
    assert page.locator(".heat").first.is_visible()
    page.locator("details summary").first.click()
    assert page.locator("details[open] table").first.is_visible()
    opened.check_quiet(path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, path: Path, scheme: str) -> None:
    """WCAG by axe-core: contrast, names, roles and order, in both colour schemes."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core is not installed")
    page = Opened(browser, path, color_scheme=scheme).page
    found = axe.Axe().run(page)
    serious = [
        f"{v['id']}: {v['nodes'][0]['html'][:150]}"
        for v in found["violations"]
        if v["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    assert len(found["passes"]) > 20


@pytest.mark.parametrize("width", [320, 390, 700, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, path: Path, width: int) -> None:
    page = Opened(browser, path, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_of_any_script_are_shown_as_they_are(browser: Any, path: Path) -> None:
    page = Opened(browser, path).page
    rows = page.locator(".matrix tbody th").all_inner_texts()
    assert [text.strip() for text in rows] == [name.strip() for name in NAMES]


def test_it_prints_with_everything_open(browser: Any, path: Path) -> None:
    page = Opened(browser, path).page
    page.emulate_media(media="print")
    assert page.locator(".control:visible").count() == 0
    assert page.locator("nav:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    content: bytes = page.pdf()
    assert content.startswith(b"%PDF")
    assert len(content) > 10_000


def test_a_thousand_classes_open_and_sort_quickly(browser: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.html"
    large.write_text(render(build_page(rows=1000)), encoding="utf-8")
    page = Opened(browser, large).page
    took = page.evaluate(
        "(() => { const start = performance.now();"
        "document.querySelector('table.sortable th:nth-child(2) button').click();"
        "document.body.offsetHeight; return performance.now() - start; })()"
    )
    assert took < 3000  # about 30 ms where nothing else runs
