"""The page: hostile text stays text, nothing can be fetched, and what is drawn is true."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import mnft.report.page.render as rendering
from mnft.report.album import Album, Heat, Neighbour, Thumbnail
from mnft.report.page.chart import draw, format_value
from mnft.report.page.render import Page, render
from mnft.tasks.panels import (
    Cell,
    Chart,
    Chooser,
    Gallery,
    Matrix,
    Panel,
    Picture,
    Point,
    Series,
    Table,
    Text,
    Verdict,
)

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x00\udcff\u202e'


def hostile_page() -> Page:
    """A page in which every text of others is an attack."""
    h = HOSTILE
    blocks = [
        Text(h, "missing", h),
        Table(h, [h, h], [[h, Cell(h, 1.0, bar=0.5, low=0.4, high=0.6, link="0-1", label=h)]]),
        Chart(h, h, h, [Series(h, [Point(0, 0, 0, 1, h), Point(1, 1)], named=True)], mark=(1, h)),
        Matrix(h, h, h, [h], [[Cell("1", 1.0, bar=1.0, link="0-1", label=h)]]),
        Gallery(h, [Picture(h, "0-1", h, 0.9, h, h, 0)], {"0-1": (h, 3)}, 3),
        Chooser(h, 10, [(t / 100, 10 - t // 10, 5) for t in range(100)]),
    ]
    album = Album(
        {h: Thumbnail("data:image/jpeg;base64,AA==", 10, 10)},
        {h: Thumbnail("data:image/jpeg;base64,AA==", 5, 5)},
        {(h, 0): Heat("data:image/png;base64,AA==", 0, 0, 100, 100)},
        {h: [Neighbour(h, h, 0.9), Neighbour(h, h, 0.8)]},
    )
    verdict = Verdict(h, h, h, h, h, {h: h}, [h], 0.1)
    return Page(h, h, verdict, [Panel("all", h, h, blocks)], album, Text(h))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def parse(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    return parser.tags


def test_text_of_others_stays_text() -> None:
    html = render(hostile_page())
    scripts = [attrs for tag, attrs in parse(html) if tag == "script"]
    assert scripts == [{"type": "application/json", "class": "steps"}, {}]
    for _, attrs in parse(html):
        assert not [name for name in attrs if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in html
    assert "\\xdcff" in html  # a byte of a file name that is not UTF-8 can be seen
    assert not re.search("[\x00-\x08\ud800-\udfff]", html)
    html.encode("utf-8")


def test_nothing_can_be_fetched() -> None:
    """The policy allows pictures in the page itself and the one script; no address is named."""
    html = render(hostile_page())
    tags = parse(html)
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for _, attrs in tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:", "#"))
    assert "url(" not in html
    assert "@import" not in html


def test_the_script_is_small_and_needs_no_framework() -> None:
    script = (Path(rendering.__file__).parent / "script.js").read_bytes()
    assert len(script) < 10_000


def test_ids_are_unique_and_links_lead_to_them() -> None:
    tags = parse(render(hostile_page()))
    ids = [attrs["id"] for _, attrs in tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    links = [a["href"] for t, a in tags if t == "a" and a.get("href")]
    assert links
    assert {link[1:] for link in links if link} <= set(ids)


def test_a_chart_keeps_its_points_inside_and_its_ticks_round() -> None:
    points = [Point(float(x), 0.1 * x, 0.1 * x - 0.05, 0.1 * x + 0.05) for x in range(8)]
    drawing = draw(Chart("t", "epoch", "loss", [Series("a", points)]))
    (line,) = drawing.lines
    assert [tick.text for tick in drawing.x_ticks] == ["0", "2", "4", "6"]
    assert len(line.marks) == 8
    for mark in line.marks:
        assert drawing.left <= mark.x <= drawing.right
        assert drawing.top <= (mark.high or 0) <= mark.y <= (mark.low or 0) <= drawing.bottom
    # Larger values are further up.
    assert line.marks[0].y > line.marks[-1].y


@pytest.mark.parametrize("values", [[0.5], [3.0, 3.0], [0.0], [1e-9, 1e-9 + 1e-12], [-1.0, 1e6]])
def test_a_chart_of_equal_or_odd_values_can_be_drawn(values: list[float]) -> None:
    chart = Chart("t", "x", "y", [Series("a", [Point(v, v) for v in values])])
    drawing = draw(chart)
    assert len(drawing.y_ticks) >= 2
    assert all(drawing.top - 1 <= m.y <= drawing.bottom + 1 for m in drawing.lines[0].marks)


def test_points_that_are_not_finite_are_left_out() -> None:
    points = [Point(0, float("nan")), Point(1, 1.0), Point(2, float("inf"))]
    assert len(draw(Chart("t", "x", "y", [Series("a", points)])).lines[0].marks) == 1


def test_names_of_points_do_not_cover_each_other() -> None:
    points = [Point(10 + i / 10, 0.9, name="a rather long name") for i in range(4)]
    series = [Series("a", points, named=True)]
    names = draw(Chart("t", "x", "y", series, log_x=True)).lines[0].names
    heights = sorted(name.y for name in names)
    assert all(b - a >= 13 for a, b in itertools.pairwise(heights))


def test_fractions_are_shown_in_percent() -> None:
    assert format_value(0.0625, percent=True) == "6.25%"
    assert format_value(0.0625, percent=False) == "0.0625"
