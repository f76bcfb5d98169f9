"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2 files", "1,000 classes" (`plural` where not -s)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """The text with an escape for each byte of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# A spreadsheet takes a cell that starts so for a formula (OWASP, "CSV injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def guard_cell(text: str) -> str:
    """The text as a spreadsheet takes it for text, not for a formula, and in one line."""
    # The csv module leaves a bare carriage return unquoted, and readers end the row there.
    return guard_formula(text).replace("\r", "\\r")


def guard_formula(text: str) -> str:
    """The text with an apostrophe in front where a spreadsheet would take it for a formula."""
    return "'" + text if text.startswith(_FORMULA_STARTS) else text


GAP = 2  # columns of the terminal between two figures, or two columns of a table


class Figure(NamedTuple):
    """One figure of a line; where room is short, those of the lowest rank are kept.

    `usual` is the width that is set aside for it, so that the lines of one run show the same
    figures although these differ in length.
    """

    text: str
    rank: int
    usual: int = 0


def fit_line(figures: Sequence[Figure], room: int) -> str:
    """The figures that have room in a line of `room` columns, in the order that they have here."""
    kept = set()
    for place in sorted(range(len(figures)), key=lambda place: figures[place].rank):
        width = max(len(figures[place].text), figures[place].usual)
        if width <= room:
            kept.add(place)
            room -= width + GAP
    return (GAP * " ").join(
        figure.text for place, figure in enumerate(figures) if place in kept and figure.text
    )


def split_columns(widths: Sequence[int], room: int) -> list[list[int]]:
    """Put the columns of a table into groups that fit side by side, each with the first column.

    Args:
        widths: least width of each column.
        room: width of the terminal.

    Returns:
        Indices of the columns of each group; one group where all fit.
    """
    groups, used = [[0]], widths[0]
    for index in range(1, len(widths)):
        if used + GAP + widths[index] > room and len(groups[-1]) > 1:
            groups.append([0])
            used = widths[0]
        groups[-1].append(index)
        used += GAP + widths[index]
    return groups
