"""How figures share the width of a terminal: what has no room is left out or moved, never cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
        widths: of the columns, at least.
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
