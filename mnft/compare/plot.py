"""The picture of a comparison: accuracy with its interval against latency, and the Pareto front."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from mnft.compare.rows import Comparison
from mnft.figures import draw_title, find_fonts, make_drawable, save_figure, style_axes

_SIZE = (9.0, 5.6)  # inches
_DPI = 130
_LABEL_POINTS = 9
# From this ratio of the longest latency to the shortest on, the axis is logarithmic.
_WIDE = 6
# Points: the least radius of a marker, and that of the largest file's.
_MIN_RADIUS, _MAX_RADIUS = 3.0, 9.0
_FRONT = "#888888"
# The colours of Okabe and Ito, told apart by every reader; shapes tell the same once more.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
# Where a label may stand, in points from its marker's edge, the nearest first.
_DISTANCES = (3, 10, 18, 28, 40, 54, 70, 90)
_ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 70, 110, 250, 290)


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    look: tuple[str, str]
    latency_ms: float
    accuracy: float  # percent, as the two below
    low: float
    high: float
    radius: float  # points
    on_front: bool


def plot_comparison(comparison: Comparison, path: Path, *, title: str) -> None:
    """Draw the rows that have accuracy and latency as a PNG, atomically.

    The area of a marker shows the file's size, colour and shape the runtime and the precision; the
    Pareto front is a line.

    Args:
        comparison: one such row at least.
        path: the PNG to write.
        title: the line above.
    """
    names = [row.name for row in comparison.rows]
    names, legend = make_drawable(names, numbering="rows of comparison.csv")
    points, looks = _find_points(comparison, names)
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    _set_axes(axes, points)
    front = _draw_front(axes, points)
    for point in points:
        _draw_point(axes, point)
    _draw_legend(axes, looks)
    if legend:
        axes.set_xlabel(f"{axes.get_xlabel()}\n{legend}", fontsize=10)
    draw_title(axes, title, width=_SIZE[0], size=11)
    canvas.draw()
    _draw_labels(axes, points, front, canvas.get_renderer())
    save_figure(figure, path)


def _find_points(
    comparison: Comparison, names: Sequence[str]
) -> tuple[list[_Point], dict[str, tuple[str, str]]]:
    complete = [
        (names[index], row.facts, row.evaluation, row.latency, comparison.fastest[index])
        for index, row in enumerate(comparison.rows)
    ]
    looks: dict[str, tuple[str, str]] = {}
    points = []
    largest = max(facts.size_bytes for _, facts, *_ in complete if facts)
    for name, facts, evaluation, latency, on_front in complete:
        if not (facts and evaluation and latency):
            continue
        kind = f"{facts.runtime} {facts.precision}"
        look = looks.setdefault(kind, _choose_look(len(looks)))
        low, high = evaluation.accuracy_interval
        radius = max(_MIN_RADIUS, _MAX_RADIUS * math.sqrt(facts.size_bytes / largest))
        points.append(
            _Point(
                f"{name}, {_in_mb(facts.size_bytes)}",
                look,
                latency.median_ms,
                100 * evaluation.accuracy,
                100 * low,
                100 * high,
                radius,
                on_front,
            )
        )
    return points, looks


def _choose_look(number: int) -> tuple[str, str]:
    turn, place = divmod(number, len(_COLOURS))
    return _COLOURS[place], _SHAPES[(place + 3 * turn) % len(_SHAPES)]


def _in_mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.{1 if size_bytes >= 950_000 else 2}f} MB"


def _set_axes(axes: Axes, points: Sequence[_Point]) -> None:
    shortest = min(point.latency_ms for point in points)
    longest = max(point.latency_ms for point in points)
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    if longest / shortest > _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        room = (longest / shortest) ** 0.14
        axes.set_xlim(shortest / room, longest * room)
    else:
        room = 0.18 * (longest - shortest) or 0.2 * longest
        axes.set_xlim(max(0.0, shortest - room), longest + room)
    axes.set_xlabel("latency of one image, median in ms (less is better)", fontsize=10)
    axes.set_ylabel("accuracy in % (more is better)", fontsize=10)
    style_axes(axes)


def _draw_front(axes: Axes, points: Sequence[_Point]) -> list[Bbox]:
    """Draw the front as steps, to the edges of the picture; gives their places in pixels."""
    front = sorted((p.latency_ms, p.accuracy) for p in points if p.on_front)
    corners = [(front[0][0], axes.get_ylim()[0])]
    for x, y in front:
        corners += [(x, corners[-1][1]), (x, y)]
    corners.append((axes.get_xlim()[1], front[-1][1]))
    xs, ys = zip(*corners, strict=True)
    axes.plot(xs, ys, color=_FRONT, linewidth=1.3, linestyle="--", zorder=1)
    pixels = axes.transData.transform(corners).tolist()
    return [Bbox([start, end]).padded(1) for start, end in itertools.pairwise(pixels)]


def _draw_point(axes: Axes, point: _Point) -> None:
    colour, shape = point.look
    x = point.latency_ms
    axes.vlines(x, point.low, point.high, color=colour, linewidth=1.1, alpha=0.45, zorder=2)
    axes.plot(
        [x],
        [point.accuracy],
        shape,
        color=colour,
        markersize=2 * point.radius,
        markeredgecolor="black" if point.on_front else "white",
        markeredgewidth=1.3 if point.on_front else 0.6,
        zorder=3,
    )


def _draw_legend(axes: Axes, looks: dict[str, tuple[str, str]]) -> None:
    entries = [
        Line2D([], [], linestyle="", marker=shape, color=colour, markersize=7, label=kind)
        for kind, (colour, shape) in looks.items()
    ]
    entries.append(
        Line2D([], [], linestyle="--", color=_FRONT, linewidth=1.3, label="Pareto front of latency")
    )
    axes.legend(
        handles=entries,
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        title="area: file size\nblack edge: on that front",
        title_fontsize=8.5,
        alignment="left",
    )


def _draw_labels(
    axes: Axes, points: Sequence[_Point], front: Sequence[Bbox], renderer: Any
) -> None:
    """Put each name as near to its marker as it covers no marker, name, interval or front."""
    scale = axes.figure.dpi / 72  # pixels a point
    spots = [_find_spot(axes, point, scale) for point in points]
    markers = [spot.marker for spot in spots]
    lines = [*(spot.interval for spot in spots), *front]
    names: list[Bbox] = []
    inside = axes.get_window_extent(renderer)
    for point, spot in zip(points, spots, strict=True):
        text = axes.text(
            *_in_data(axes, inside.x0, inside.y0),
            point.name,
            fontsize=_LABEL_POINTS,
            fontfamily=find_fonts([point.name]),
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=4,
        )
        extent = text.get_window_extent(renderer)
        places = [
            place
            for place in _candidates(spot, extent.width, extent.height, scale)
            if _holds(inside, place) and not place.count_overlaps(markers + names)
        ]
        # Rather on a line than nowhere, and rather on anything than left out.
        free = [place for place in places if not place.count_overlaps(lines)]
        fallback = next(_candidates(spot, extent.width, extent.height, scale))
        box = (free or places or [fallback])[0]
        names.append(box)
        # Text stands on its baseline, which is above the lower edge of its box.
        text.set_position(_in_data(axes, box.x0, box.y0 - extent.y0 + inside.y0))
        _draw_leader(axes, spot, box, scale)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a point is, in pixels."""

    x: float
    y: float
    radius: float
    interval: Bbox

    @property
    def marker(self) -> Bbox:
        r = self.radius
        return Bbox.from_extents(self.x - r, self.y - r, self.x + r, self.y + r)


def _find_spot(axes: Axes, point: _Point, scale: float) -> _Spot:
    ends = [(point.latency_ms, value) for value in (point.accuracy, point.low, point.high)]
    (x, y), (_, low), (_, high) = axes.transData.transform(ends).tolist()
    return _Spot(x, y, scale * point.radius + 1, Bbox.from_extents(x - 2, low, x + 2, high))


def _candidates(spot: _Spot, width: float, height: float, scale: float) -> Iterator[Bbox]:
    for distance, angle in itertools.product(_DISTANCES, _ANGLES):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        away = spot.radius + scale * distance
        # The box's side or corner that faces the marker is what the distance is meant to.
        x = spot.x + away * cosine + width / 2 * max(-1.0, min(1.0, 1.5 * cosine))
        y = spot.y + away * sine + height / 2 * max(-1.0, min(1.0, 1.5 * sine))
        yield Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _in_data(axes: Axes, x: float, y: float) -> tuple[float, float]:
    inverse = axes.transData.inverted().transform((x, y))
    return float(inverse[0]), float(inverse[1])


def _holds(outer: Bbox, inner: Bbox) -> bool:
    return bool(
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )


def _draw_leader(axes: Axes, spot: _Spot, box: Bbox, scale: float) -> None:
    """A thin line from a name that stands far from its marker."""
    end = (min(max(spot.x, box.x0), box.x1), min(max(spot.y, box.y0), box.y1))
    if math.dist(end, (spot.x, spot.y)) < spot.radius + scale * _DISTANCES[1]:
        return
    xs, ys = axes.transData.inverted().transform([(spot.x, spot.y), end]).T
    axes.plot(xs, ys, color="#777777", linewidth=0.6, zorder=2)
