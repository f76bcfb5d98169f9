"""What all plots share: fonts that have the names that users chose, axes, and writing a PNG."""

from __future__ import annotations

import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font_names
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mnft.files import atomic_path
from mnft.results import EpochResult

_OWN = "DejaVu Sans"  # comes with matplotlib, and has no Chinese, Japanese, Korean, Hindi or Thai
# Tried first, as a font with serifs or for headlines may have the characters as well.
_PREFERRED = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans",
    "Hiragino Sans GB",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
# These have a box or nothing for every character.
_EMPTY = ("Last Resort", "LastResort", "Adobe Blank", "Adobe NotDef")
_log = logging.getLogger(__name__)
_told: list[bool] = []
# That a family has no normal weight is no news to the user.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def find_fonts(texts: Sequence[str]) -> list[str]:
    """Families that together draw as much of the texts as can be: matplotlib's own, then others."""
    return [_OWN, *_search(_collect(texts))[0]]


def make_drawable(names: Sequence[str], *, numbering: str) -> tuple[list[str], str | None]:
    """Put a number before each name that no installed font draws, and leave out what is missing.

    The log says once that there are such names.

    Args:
        names: names of classes or models.
        numbering: what the numbers are, for the legend, as "rows of per_class.csv".

    Returns:
        The names as they can be drawn, and a legend where there are numbers.
    """
    missing = _search(_collect(names))[1]
    shown = []
    for number, name in enumerate(names, start=1):
        if missing.isdisjoint(name):
            shown.append(name)
            continue
        rest = "".join(character for character in name if character not in missing).strip()
        # What is left of "rose 🌻" says something, of "クラス 2" it would mislead.
        readable = 2 * len(rest) > len(name) and any(character.isalpha() for character in rest)
        shown.append(f"[{number}] {rest}" if readable else f"[{number}]")
    if not missing:
        return shown, None
    if not _told:
        _told.append(True)
        _log.warning(
            "no font on this machine has %s: plots show numbers for names with such "
            "characters; fonts such as Noto Sans CJK have them",
            "".join(sorted(missing)[:10]),
        )
    return shown, f"[n]: {numbering}; no font here has all characters of these names"


def replace_missing(text: str) -> str:
    """The text with a question mark for each character that no installed font has."""
    missing = _search(_collect([text]))[1]
    return "".join("?" if character in missing else character for character in text)


def _collect(texts: Sequence[str]) -> frozenset[str]:
    """The characters that leave a mark; joiners and the like need no glyph."""
    characters = set().union(*texts)
    unseen = {"Cc", "Cf"}
    return frozenset(
        c for c in characters if unicodedata.category(c) not in unseen and not c.isspace()
    )


@lru_cache(maxsize=64)
def _search(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families beside matplotlib's own that draw the characters, and those that none draws."""
    missing = characters - _covered(_OWN, characters)
    families = []
    if missing:
        names = [name for name in get_font_names() if not name.startswith(_EMPTY)]
        rank = {name: place for place, name in enumerate(_PREFERRED)}
        names.sort(key=lambda name: (rank.get(name, len(rank)), "Sans" not in name, name))
        for name in names:
            if covered := _covered(name, missing):
                families.append(name)
                missing -= covered
            if not missing:
                break
    return tuple(families), missing


def _covered(family: str, characters: frozenset[str]) -> frozenset[str]:
    """The characters that the file has which matplotlib takes for a family."""
    try:
        font = FT2Font(findfont(FontProperties(family=family), fallback_to_default=False))
        return frozenset(c for c in characters if font.get_char_index(ord(c)))
    except (OSError, RuntimeError, ValueError):  # gone, damaged, or only bitmaps
        return frozenset()


DPI = 110


_MAX_LABEL_CHARS = 28


MIN_TITLE_CHARS = 40


MARK = "#d55e00"  # the vermilion of Okabe and Ito, told from blue by every reader


def shorten(name: str, limit: int = _MAX_LABEL_CHARS) -> str:
    """Keep both ends: names of one family often differ only in the last word."""
    text = " ".join(name.split())
    if len(text) <= limit:
        return text
    tail = limit // 3
    return text[: limit - tail - 1] + "…" + text[-tail:]


def draw_title(axes: Axes, title: str, *, width: float, size: float) -> None:
    """Put a title above the axes, broken into lines that fit `width` inches at `size` points."""
    text = textwrap.fill(title, max(MIN_TITLE_CHARS, int(72 * width / (0.6 * size))))
    axes.set_title(
        text, loc="left", fontsize=size, fontfamily=find_fonts([title]), parse_math=False
    )


def draw_caption(axes: Axes, lines: Sequence[str]) -> None:
    """Put lines of text below an image, in fonts that have their characters."""
    caption = "\n".join(lines)
    fonts = find_fonts([caption])
    below = {"transform": axes.transAxes, "va": "top", "fontsize": 7.5}
    axes.text(0, -0.03, caption, below, fontfamily=fonts, parse_math=False)


def style_axes(axes: Axes) -> None:
    """Give the plot of a curve a light grid, small ticks and no box."""
    axes.grid(True, color="#e4e4e4", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, length=2, width=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # A script that no installed font has is drawn as boxes: no reason to lose the plot.
        warnings.filterwarnings("ignore", message=r"(?s).*[Gg]lyph.*missing")
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)


def mark_epochs(axes: Axes, results: Sequence[EpochResult]) -> None:
    """Number the epochs of a training on the horizontal axis, and mark the best and the head stage.

    Args:
        axes: where the epochs are drawn; the head stage is epoch 0.
        results: the head stage, if any, and the epochs, in order; at least one.
    """
    for result in [result for result in results if result.is_best][-1:]:
        axes.axvline(result.epoch, color="#555555", linewidth=1, linestyle=":", zorder=1)
    if results[0].stage == "head":
        axes.axvspan(-0.5, 0.5, color="#e6e6e6", zorder=0)
    axes.set_xlim(results[0].epoch - 0.5, results[-1].epoch + 0.5)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}" if x else "head"))
    style_axes(axes)
