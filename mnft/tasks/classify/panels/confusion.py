"""The plot of a confusion matrix, drawn without a screen and without pyplot's global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mnft.figures import (
    DPI,
    MARK,
    MIN_TITLE_CHARS,
    draw_title,
    find_fonts,
    make_drawable,
    save_figure,
    shorten,
)

# Inches: a cell with its count inside, a cell that only needs its label, and the whole matrix.
_ROOMY_CELL, _SMALL_CELL, _MAX_SIDE = 0.45, 0.21, 24.0
_BAR_HEIGHT = 2.4  # also the least side of the matrix
_MAX_COUNTED_CLASSES = 30
_NUM_LISTED = 25


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A confusion matrix ready to draw: counts (C, C), fractions of each row (C, C), labels."""

    counts: Any
    fractions: Any
    labels: list[str]
    legend: str | None  # of numbers in the labels
    fonts: list[str]
    side: float  # inches

    @property
    def cell_points(self) -> float:
        return 72 * self.side / len(self.labels)

    @property
    def many(self) -> bool:
        return len(self.labels) > _MAX_COUNTED_CLASSES

    @property
    def heading_size(self) -> float:
        # A large plot is first looked at from further away.
        return 10.5 + self.side / 7


def plot_confusion(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw a confusion matrix as a PNG, atomically.

    The colour shows the fraction of the true class, on a square-root scale so that rare confusions
    stay visible. Up to 30 classes each count that is not 0 stands in its cell; with more, the most
    frequent confusions are outlined and counted. From 11 classes on they are also listed at the
    side. Where labels would overlap, only every second, third, ... class is named.

    Args:
        confusion: (C, C) counts, rows by true class, columns by predicted class.
        class_names: C names; long ones are shortened with an ellipsis, and those that no font
            here has are drawn as numbers.
        path: the PNG to write.
        title: the line above the matrix.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    num_classes = len(class_names)
    if counts.shape != (num_classes, num_classes):
        raise ValueError(f"a {counts.shape} confusion matrix for {num_classes} class names")
    roomy = min(num_classes, _MAX_COUNTED_CLASSES) * _ROOMY_CELL
    side = min(max(roomy, num_classes * _SMALL_CELL, _BAR_HEIGHT), _MAX_SIDE)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names, legend = make_drawable(class_names, numbering="rows of per_class.csv")
    labels = [shorten(name) for name in names]
    matrix = _Matrix(counts, fractions, labels, legend, find_fonts(labels), side)
    figure = Figure(figsize=(side, side), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(fractions, cmap="Blues", norm=norm, interpolation="nearest")
    bar_axes = axes.inset_axes((1 + 0.15 / side, 0, 0.16 / side, _BAR_HEIGHT / side))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "20%", "50%", "100%"], fontsize=8)
    bar.set_label("fraction of the true class", fontsize=8)
    bar.outline.set_linewidth(0.5)
    if matrix.cell_points > 10:
        edges = np.arange(num_classes - 1) + 0.5
        axes.hlines(edges, -0.5, num_classes - 0.5, color="#dddddd", linewidth=0.4)
        axes.vlines(edges, -0.5, num_classes - 0.5, color="#dddddd", linewidth=0.4)
    _draw_labels(axes, matrix, title)

    # The cells off the diagonal with the largest counts, largest first.
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_NUM_LISTED].tolist()
    confusions = [cell for cell in (divmod(i, num_classes) for i in order) if wrong[cell] > 0]
    if matrix.many:
        # Where cells are only a few points wide, the outline is wider than its cell.
        width = max(1.1, 7 / matrix.cell_points)
        outline: dict[str, Any] = {"fill": False, "edgecolor": MARK, "linewidth": 1.8}
        for row, column in confusions:
            corner = (column - width / 2, row - width / 2)
            axes.add_patch(Rectangle(corner, width, width, **outline))
        if matrix.cell_points > 10:
            _draw_counts(axes, matrix, confusions)
    else:
        _draw_counts(axes, matrix, np.argwhere(counts).tolist())
    if num_classes > 10 and confusions:
        _list_confusions(axes, matrix, confusions)
    save_figure(figure, path)


def _draw_labels(axes: Axes, matrix: _Matrix, title: str) -> None:
    size = 8 if matrix.many else 10
    step = math.ceil(1.15 * size / matrix.cell_points)
    ticks = range(0, len(matrix.labels), step)
    labels = [matrix.labels[tick] for tick in ticks]
    text: dict[str, Any] = {"fontsize": size, "parse_math": False, "fontfamily": matrix.fonts}
    slant: dict[str, Any] = {"rotation": 90, "va": "center"} if matrix.many else {"rotation": 45}
    axes.set_xticks(ticks, labels, **text, **slant, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, labels, **text)
    axes.tick_params(length=2, width=0.5)
    axes.set_xlabel("predicted", fontsize=matrix.heading_size)
    if matrix.legend:
        # Below the labels, which are long: matplotlib knows where they end.
        line = textwrap.fill(matrix.legend, max(MIN_TITLE_CHARS, int(72 * matrix.side / 5)))
        axes.set_xlabel(f"predicted\n{line}", fontsize=matrix.heading_size)
    axes.set_ylabel("true", fontsize=matrix.heading_size)
    draw_title(axes, title, width=matrix.side, size=matrix.heading_size)


def _draw_counts(axes: Axes, matrix: _Matrix, cells: Iterable[Sequence[int]]) -> None:
    digits = len(str(matrix.counts.max()))
    size = min(10.0, 0.9 * matrix.cell_points / (0.64 * digits))
    for row, column in cells:
        # On the square-root colour scale the blue is dark from about this fraction on.
        colour = "white" if matrix.fractions[row, column] > 0.3 else "black"
        count = str(matrix.counts[row, column])
        axes.text(column, row, count, ha="center", va="center", fontsize=size, color=colour)


def _list_confusions(axes: Axes, matrix: _Matrix, confusions: list[tuple[int, int]]) -> None:
    size, linespacing = matrix.heading_size - 2, 1.5
    lines = ["most frequent confusions", "images, fraction of the true class, true → predicted", ""]
    room = 72 * (matrix.side - _BAR_HEIGHT - 0.4) / (size * linespacing) - len(lines)
    digits = len(str(matrix.counts[confusions[0]]))
    for row, column in confusions[: int(room)]:
        figures = f"{matrix.counts[row, column]:>{digits}}  {matrix.fractions[row, column]:>4.0%}"
        # A figure space is as wide as a digit, so the columns line up in a proportional font.
        figures = figures.replace(" ", "\N{FIGURE SPACE}")
        lines.append(f"{figures}   {matrix.labels[row]} → {matrix.labels[column]}")
    axes.text(
        1 + 0.3 / matrix.side,
        1,
        "\n".join(lines),
        transform=axes.transAxes,
        va="top",
        fontsize=size,
        linespacing=linespacing,
        parse_math=False,
        fontfamily=matrix.fonts,
    )
