"""The plot of a comparison: main figure with interval against latency, and the Pareto front."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
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
# Points: the smallest radius of a marker, and that of the largest file's.
_MIN_RADIUS, _MAX_RADIUS = 3.0, 9.0
_FRONT = "#888888"
# The colours of Okabe and Ito, which every reader can tell apart; shapes say the same again.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
# Where a label may stand: points from its marker's edge and degrees, the nearest first.
_DISTANCES = (3, 10, 18, 28, 40, 54, 70, 90)
_ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 70, 110, 250, 290)


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    colour: str
    shape: str
    latency_ms: float
    value: float  # percent, as the two below
    low: float
    high: float
    radius: float  # points
    on_front: bool


def plot_comparison(comparison: Comparison, path: Path, *, title: str, metric: str) -> None:
    """Draw the rows that have figures and latency as a PNG, atomically.

    The area of a marker shows the file's size, its colour and shape show the runtime and the
    precision; the Pareto front is a line.

    Args:
        comparison: a comparison with at least one complete row.
        path: the PNG to write.
        title: the line above the plot.
        metric: name of the main figure, for the axis.
    """
    names = [row.name for row in comparison.rows]
    names, numbers = make_drawable(names, numbering="rows of comparison.csv")
    points, styles = _build_points(comparison, names)
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    _set_axes(axes, points, metric, below=f"\n{numbers}" if numbers else "")
    # The front as steps, from the lower to the right edge of the plot.
    front = sorted((point.latency_ms, point.value) for point in points if point.on_front)
    corners = [(front[0][0], axes.get_ylim()[0])]
    for x, y in front:
        corners += [(x, corners[-1][1]), (x, y)]
    corners.append((axes.get_xlim()[1], front[-1][1]))
    xs, ys = zip(*corners, strict=True)
    axes.plot(xs, ys, color=_FRONT, linewidth=1.3, linestyle="--", zorder=1)
    for point in points:
        x, colour = point.latency_ms, point.colour
        axes.vlines(x, point.low, point.high, color=colour, linewidth=1.1, alpha=0.45, zorder=2)
        axes.plot(
            [x],
            [point.value],
            point.shape,
            color=colour,
            markersize=2 * point.radius,
            markeredgecolor="black" if point.on_front else "white",
            markeredgewidth=1.3 if point.on_front else 0.6,
            zorder=3,
        )
    draw_legend(axes, styles)
    draw_title(axes, title, width=_SIZE[0], size=11)
    canvas.draw()  # only then are the places in pixels final
    pixels = axes.transData.transform(corners).tolist()
    steps = [Bbox([start, end]).padded(1) for start, end in itertools.pairwise(pixels)]
    _draw_names(axes, points, steps, canvas.get_renderer())
    save_figure(figure, path)


def _build_points(
    comparison: Comparison, names: Sequence[str]
) -> tuple[list[_Point], dict[str, tuple[str, str]]]:
    """The points, and the colour and shape of each runtime and precision."""
    largest = max(row.facts.size_bytes for row in comparison.rows if row.facts)
    styles: dict[str, tuple[str, str]] = {}
    points = []
    for name, row, on_front in zip(names, comparison.rows, comparison.fastest, strict=True):
        if not (row.facts and row.evaluation and row.latency):
            continue
        # Where the colours begin again, the shapes are shifted.
        turn, place = divmod(len(styles), len(_COLOURS))
        style = _COLOURS[place], _SHAPES[(place + 3 * turn) % len(_SHAPES)]
        kind = f"{row.facts.runtime} {row.facts.precision}"
        colour, shape = styles.setdefault(kind, style)
        size_bytes = row.facts.size_bytes
        rate = row.evaluation.rate
        points.append(
            _Point(
                f"{name}, {size_bytes / 1e6:.{1 if size_bytes >= 950_000 else 2}f} MB",
                colour,
                shape,
                row.latency.median_ms,
                100 * rate.value,
                100 * rate.low,
                100 * rate.high,
                max(_MIN_RADIUS, _MAX_RADIUS * math.sqrt(size_bytes / largest)),
                on_front,
            )
        )
    return points, styles


def _set_axes(axes: Axes, points: Sequence[_Point], metric: str, *, below: str) -> None:
    """Limits with room around the points, scales and labels; `below` is added to the lower one."""
    shortest = min(point.latency_ms for point in points)
    longest = max(point.latency_ms for point in points)
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
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(f"latency of one image, median in ms (less is better){below}", fontsize=10)
    axes.set_ylabel(f"{metric} in % (more is better)", fontsize=10)
    style_axes(axes)


def draw_legend(axes: Axes, styles: Mapping[str, tuple[str, str]]) -> None:
    """Explain the markers and the line beside the plot.

    Args:
        axes: the plot.
        styles: the colour and shape of each runtime and precision.
    """
    entries = [
        Line2D([], [], linestyle="", marker=shape, color=colour, markersize=7, label=kind)
        for kind, (colour, shape) in styles.items()
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


def _draw_names(axes: Axes, points: Sequence[_Point], front: Sequence[Bbox], renderer: Any) -> None:
    """Put each name near its marker, where it covers no marker, name, interval or front."""
    scale = axes.figure.dpi / 72  # pixels a point
    spots = []
    for point in points:
        ends = [(point.latency_ms, value) for value in (point.value, point.low, point.high)]
        (x, y), (_, low), (_, high) = axes.transData.transform(ends).tolist()
        interval = Bbox.from_extents(x - 2, low, x + 2, high)
        spots.append(_Spot(x, y, scale * point.radius + 1, interval))
    markers = [spot.marker for spot in spots]
    lines = [*(spot.interval for spot in spots), *front]
    inside = axes.get_window_extent(renderer)
    to_data = axes.transData.inverted()
    corner_x, corner_y = to_data.transform((inside.x0, inside.y0)).tolist()
    names: list[Bbox] = []
    for point, spot in zip(points, spots, strict=True):
        text = axes.text(
            corner_x,
            corner_y,
            point.name,
            fontsize=_LABEL_POINTS,
            fontfamily=find_fonts([point.name]),
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=4,
        )
        extent = text.get_window_extent(renderer)
        candidates = list(_list_places(spot, extent.width, extent.height, scale))
        places = [
            place
            for place in candidates
            if inside.x0 <= place.x0
            and place.x1 <= inside.x1
            and inside.y0 <= place.y0
            and place.y1 <= inside.y1
            and not place.count_overlaps(markers + names)
        ]
        free = [place for place in places if not place.count_overlaps(lines)]
        # Better on a line than nowhere, and better on anything than left out.
        box = (free or places or candidates)[0]
        names.append(box)
        # Text stands on its baseline, which is above the lower edge of its box.
        x, y = to_data.transform((box.x0, box.y0 - extent.y0 + inside.y0)).tolist()
        text.set_position((x, y))
        # A thin line leads to the marker from a name that stands far from it.
        end = (min(max(spot.x, box.x0), box.x1), min(max(spot.y, box.y0), box.y1))
        if math.dist(end, (spot.x, spot.y)) >= spot.radius + scale * _DISTANCES[1]:
            xs, ys = to_data.transform([(spot.x, spot.y), end]).T
            axes.plot(xs, ys, color="#777777", linewidth=0.6, zorder=2)


def _list_places(spot: _Spot, width: float, height: float, scale: float) -> Iterator[Bbox]:
    """Boxes of a size around a marker, the nearest first."""
    for distance, angle in itertools.product(_DISTANCES, _ANGLES):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        away = spot.radius + scale * distance
        # The distance is that of the box's side or corner that faces the marker.
        x = spot.x + away * cosine + width / 2 * max(-1.0, min(1.0, 1.5 * cosine))
        y = spot.y + away * sine + height / 2 * max(-1.0, min(1.0, 1.5 * sine))
        yield Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
