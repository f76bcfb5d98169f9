"""From a chart's points to the places of lines, marks and ticks in an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mnft.tasks.panels import Chart, Point

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 12, 44
_CHARACTER, _LINE = 6.6, 13  # usual width of a character of a name, and height of a line
_MARKED_POINTS = 60  # with more points on a line, marks would hide it


class Tick(NamedTuple):
    """A place on an axis and its text."""

    at: float
    text: str


class Mark(NamedTuple):
    """A point's place, the ends of its interval, and what it is."""

    x: float
    y: float
    low: float | None
    high: float | None
    name: str


class Name(NamedTuple):
    """The name of a point, and where it stands; `anchor` is SVG's."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series in pixels: its line as SVG points, "" for none, its marks and their names."""

    name: str
    points: str
    marks: Sequence[Mark]
    names: Sequence[Name] = ()


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart in pixels.

    Attributes:
        chart: the chart.
        x_ticks: ticks of the horizontal axis.
        y_ticks: ticks of the vertical axis.
        lines: the series.
        diagonal: ends of the diagonal as x1, y1, x2, y2, or None.
        mark: the place of the chart's mark, or None.
    """

    chart: Chart
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    diagonal: tuple[float, float, float, float] | None
    mark: Tick | None
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def draw(chart: Chart) -> Drawing:
    """Place a chart's points; points that are not finite are left out."""
    series = [
        [p for p in entry.points if math.isfinite(p.x) and math.isfinite(p.y)]
        for entry in chart.series
    ]
    points = [point for entry in series for point in entry]
    xs = [point.x for point in points]
    ys = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
    if chart.diagonal:
        x_ends = y_ends = 0.0, 1.0
        x_values = y_values = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    else:
        x_ends, x_values = _scale_log(xs) if chart.log_x else _scale(xs, whole=_are_whole(xs))
        y_ends, y_values = _scale(ys)

    def place_x(x: float) -> float:
        low, high, at = (map(math.log10, (*x_ends, x))) if chart.log_x else (*x_ends, x)
        share = (at - low) / (high - low)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def place_y(y: float) -> float:
        share = (y - y_ends[0]) / (y_ends[1] - y_ends[0])
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def place(point: Point) -> Mark:
        low, high = (None if end is None else place_y(end) for end in (point.low, point.high))
        return Mark(place_x(point.x), place_y(point.y), low, high, point.name)

    lines: list[Line] = []
    taken: list[Name] = []
    for entry, kept in zip(chart.series, series, strict=True):
        marks = [place(point) for point in kept]
        path = " ".join(f"{mark.x},{mark.y}" for mark in marks) if entry.line else ""
        first = len(taken)
        for mark in marks if entry.named else []:
            taken.append(_place_name(mark, taken))
        shown = marks if entry.marks and len(marks) <= _MARKED_POINTS else []
        lines.append(Line(entry.name, path, shown, taken[first:]))
    diagonal = (place_x(0), place_y(0), place_x(1), place_y(1)) if chart.diagonal else None
    return Drawing(
        chart,
        [
            Tick(place_x(value), format_value(value, percent=chart.diagonal and chart.percent))
            for value in x_values
        ],
        [Tick(place_y(value), format_value(value, percent=chart.percent)) for value in y_values],
        lines,
        diagonal,
        None if chart.mark is None else Tick(place_x(chart.mark[0]), chart.mark[1]),
    )


def _place_name(mark: Mark, taken: Sequence[Name]) -> Name:
    """Put a point's name beside it, or further down where another name stands."""
    anchor, x = ("start", mark.x + 8) if mark.x < WIDTH * 0.6 else ("end", mark.x - 8)

    def span(name: Name) -> tuple[float, float]:
        width = _CHARACTER * len(name.text)
        return (name.x, name.x + width) if name.anchor == "start" else (name.x - width, name.x)

    name = Name(mark.name, x, mark.y + 4, anchor)
    while any(
        abs(other.y - name.y) < _LINE
        and span(other)[0] < span(name)[1]
        and span(name)[0] < span(other)[1]
        for other in taken
    ):
        name = name._replace(y=name.y + _LINE)
    return name


def format_value(value: float, *, percent: bool) -> str:
    """A number as the axis and the table of a chart show it."""
    return f"{100 * value:.4g}%" if percent else f"{value:.4g}"


def _are_whole(values: Sequence[float]) -> bool:
    return all(value == round(value) for value in values)


def _scale(
    values: Sequence[float], *, whole: bool = False
) -> tuple[tuple[float, float], list[float]]:
    """Ends of an axis, and round values on it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - (0.5 if whole else abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    if whole:
        inside = range(math.ceil(low / step), math.floor(high / step) + 1)
        return (low, high), [round(i * step, 10) for i in inside]
    return (first * step, last * step), [round(i * step, 10) for i in range(first, last + 1)]


def _scale_log(values: Sequence[float]) -> tuple[tuple[float, float], list[float]]:
    low, high = min(values, default=1.0) / 1.3, max(values, default=10.0) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return (low, high), [tick for tick in ticks if low <= tick <= high]
