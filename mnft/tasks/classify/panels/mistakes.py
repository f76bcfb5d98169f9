"""Plots of an evaluation: the worst mistakes, and how reliable the confidence is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import ImageOps

from mnft.data.decode import decode_bytes, read_content
from mnft.errors import DataError
from mnft.figures import (
    draw_caption,
    find_fonts,
    make_drawable,
    replace_missing,
    save_figure,
    shorten,
    style_axes,
)
from mnft.tasks.classify.decision.calibration import compute_reliability
from mnft.tasks.classify.intervals import compute_wilson_interval

_DPI = 110
_COLUMNS, _MAX_SHOWN = 6, 24
_TILE = 224  # pixels of the longer side
_CELL = (1.75, 2.25)  # inches, with three lines below the image
_LINE_CHARS = 25
_RELIABILITY_SIZE = (5.2, 5.6)
_BLUE, _GREY = "#0072b2", "#777777"


def find_worst(
    targets: NDArray[Any], probabilities: NDArray[Any], limit: int = _MAX_SHOWN
) -> list[int]:
    """Positions of the mistakes with the least probability of the true class, the worst first.

    Args:
        targets: (N,) int in [0, C).
        probabilities: (N, C) float in [0, 1].
        limit: largest number of positions.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    order = np.argsort(probabilities[wrong, targets[wrong]], kind="stable")
    return [int(position) for position in wrong[order[:limit]]]


def plot_mistakes(
    root: Path,
    paths: Sequence[str],
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    class_names: Sequence[str],
    path: Path,
) -> bool:
    """Draw the worst mistakes with what was predicted and what is true as a PNG, atomically.

    An image that cannot be read (any more) is a grey tile that says so.

    Args:
        root: folder of the images.
        paths: N paths below it.
        targets: (N,) int in [0, C).
        probabilities: (N, C) float in [0, 1].
        class_names: C names.
        path: the PNG to write.

    Returns:
        Whether there are mistakes; nothing is written where there are none.
    """
    worst = find_worst(targets, probabilities)
    if not worst:
        return False
    names, legend = make_drawable(class_names, numbering="rows of per_class.csv")
    # At least three columns, so that the title fits where there are few mistakes.
    columns, rows = min(max(len(worst), 3), _COLUMNS), -(-len(worst) // _COLUMNS)
    mistakes = int((probabilities.argmax(axis=1) != targets).sum())
    which = (
        f"the {len(worst)} worst of {mistakes} mistakes"
        if len(worst) < mistakes
        else "all mistakes"
    )
    title = f"{which}: what the model says, and how likely it finds the true class"
    fill = textwrap.TextWrapper(int(_LINE_CHARS * columns * 0.75)).fill
    heading = "\n".join(fill(line) for line in (title, legend) if line)
    above = 0.3 + 0.18 * heading.count("\n")  # inches, as all sizes below
    width, height = columns * _CELL[0], rows * _CELL[1] + above
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.06 / width, 1, heading, fontsize=9.5, va="top", fontfamily=find_fonts([heading]))
    for number, position in enumerate(worst):
        row, column = divmod(number, _COLUMNS)
        left, top = column * _CELL[0] + 0.06, height - above - row * _CELL[1]
        side = _CELL[0] - 0.12
        axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        axes.axis("off")
        tile = _read_tile(root / paths[position])
        if tile is None:
            tile = np.full((_TILE, _TILE, 3), 225, dtype=np.uint8)
            axes.text(_TILE / 2, _TILE / 2, "cannot be read", ha="center", fontsize=8)
        axes.imshow(tile)
        likely, target = probabilities[position], int(targets[position])
        label = int(likely.argmax())
        lines = [
            f"{shorten(names[label], _LINE_CHARS - 5)} {likely[label]:.0%}",
            f"true: {shorten(names[target], _LINE_CHARS - 12)} {likely[target]:.1%}",
            shorten(replace_missing(Path(paths[position]).name), _LINE_CHARS),
        ]
        draw_caption(axes, lines)
    save_figure(figure, path)
    return True


def plot_reliability(
    targets: NDArray[Any], probabilities: NDArray[Any], path: Path, *, ece: float
) -> None:
    """Draw the accuracy of predictions against their confidence as a PNG, atomically.

    A point stands for the predictions of one of the bins that the expected calibration error is
    computed with, at their mean confidence, with the 95% Wilson interval of their accuracy; a
    model whose confidence is right has its points on the diagonal. Below are their numbers.

    Args:
        targets: (N,) int in [0, C).
        probabilities: (N, C) float in [0, 1].
        path: the PNG to write.
        ece: expected calibration error, for the title.
    """
    bins = compute_reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)
    filled = [b for b in bins if b.num_images]
    figure = Figure(figsize=_RELIABILITY_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=_GREY, linestyle="--", linewidth=1, label="ideal")
    for b in filled:
        low, high = compute_wilson_interval(b.num_correct, b.num_images)
        upper.vlines(100 * b.confidence, 100 * low, 100 * high, color=_BLUE, linewidth=1, alpha=0.6)
    upper.plot(
        [100 * b.confidence for b in filled],
        [100 * b.num_correct / b.num_images for b in filled],
        "o",
        color=_BLUE,
        markersize=5,
        label="accuracy of a bin, with 95% interval",
    )
    upper.set_ylabel("accuracy in %")
    upper.set_xlim(0, 100)
    upper.set_ylim(-2, 102)
    # Above the points, which may be anywhere.
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 2}
    upper.legend(fontsize=9, frameon=False, borderpad=0, **place)
    title = f"expected calibration error {ece:.3f}, {len(targets):,} images"
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    edges = np.linspace(0, 100, len(bins) + 1)
    lower.bar(
        edges[:-1],
        [b.num_images for b in bins],
        width=np.diff(edges),
        align="edge",
        color="#b3cfe5",
        edgecolor=_BLUE,
        linewidth=0.6,
    )
    lower.set_ylabel("images")
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set_xlabel("confidence: probability of the predicted class in %")
    for axes in (upper, lower):
        style_axes(axes)
    save_figure(figure, path)


def _read_tile(path: Path) -> NDArray[Any] | None:
    """The whole image, small; None where it cannot be read."""
    try:
        image = decode_bytes(read_content(path), min_side=_TILE)
    except DataError:
        return None
    return np.asarray(ImageOps.pad(image, (_TILE, _TILE), color="white"))
