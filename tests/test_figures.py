"""Names in pictures: fonts that have their characters, and numbers where no font has them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from mnft import figures as fonts
from mnft.figures import find_fonts, make_drawable
from mnft.tasks.classify.panels.confusion import plot_confusion

pytestmark = pytest.mark.plots

# Of the private use area, so that no font which happens to be installed has them.
HERE, GONE = "\U0010f123\U0010f124", "\U0010f999"


def build_font(path: Path, family: str, characters: str) -> Path:
    """A font whose glyphs are squares."""
    names = {ord(character): f"glyph{number}" for number, character in enumerate(characters)}
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    order = [".notdef", *names.values()]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(order, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def _fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A font with characters that matplotlib's own lacks, and one that has boxes for all."""

    def forget() -> None:
        fonts._search.cache_clear()
        fonts._told.clear()
        font_manager.fontManager._findfont_cached.cache_clear()

    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    manager.addfont(build_font(tmp_path / "squares.ttf", "Squares", HERE))
    manager.addfont(build_font(tmp_path / "last.ttf", "Last Resort Test", HERE + GONE))
    forget()
    yield
    forget()


@pytest.mark.usefixtures("_fonts")
def test_a_font_is_found_that_has_the_characters():
    assert find_fonts(["rose", "Ж, é"]) == ["DejaVu Sans"]
    assert find_fonts(["rose", f"x {HERE}"]) == ["DejaVu Sans", "Squares"]
    assert make_drawable(["rose", HERE], numbering="rows") == (["rose", HERE], None)


@pytest.mark.usefixtures("_fonts")
def test_names_without_a_font_become_numbers_with_a_legend(caplog):
    names = ["rose", GONE, f"tulip {GONE}", f"{HERE}{GONE}{GONE}", f"{GONE}{GONE} 2"]
    shown, legend = make_drawable(names, numbering="rows of x.csv")
    assert shown == ["rose", "[2]", "[3] tulip", "[4]", "[5]"]
    assert legend == "[n]: rows of x.csv; no font here has all characters of these names"
    make_drawable(["\U0010f998"], numbering="rows of x.csv")
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]  # said once
    assert f"no font on this machine has {GONE}: plots show numbers" in record.getMessage()


def test_joiners_and_line_ends_need_no_glyph():
    assert make_drawable(["a\u200db\n c\ufeff"], numbering="")[1] is None


@pytest.mark.usefixtures("_fonts")
def test_a_font_that_cannot_be_read_is_passed_over(tmp_path):
    (tmp_path / "squares.ttf").unlink()
    assert find_fonts([HERE]) == ["DejaVu Sans"]


@pytest.mark.usefixtures("_fonts")
def test_a_picture_draws_names_with_the_font_or_as_numbers(tmp_path, monkeypatch):
    drawn: dict[str, list[str]] = {}
    save = Figure.savefig

    def collect(figure, *args, **kwargs):
        drawn.update((t.get_text(), t.get_fontfamily()) for t in figure.findobj(Text))
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", collect)
    names = ["rose", HERE, GONE]
    plot_confusion([[1, 0, 0], [0, 2, 0], [1, 0, 3]], names, tmp_path / "x.png", title="t")
    assert {"rose", HERE, "[3]"} <= set(drawn)
    assert drawn[HERE] == ["DejaVu Sans", "Squares"]
    assert any(text.startswith("predicted\n[n]: rows of per_class.csv") for text in drawn)
    assert not [text for text in drawn if GONE in text]
