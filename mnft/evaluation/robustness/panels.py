"""Plots of a robustness evaluation: the figure under each corruption, and the worst examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnft.data.corruptions import CORRUPTIONS, LEVELS
from mnft.errors import DataError
from mnft.evaluation.images import ImageSet
from mnft.evaluation.robustness.batches import (
    VARIANTS,
    decode_for_corruption,
    show_variant,
)
from mnft.evaluation.robustness.measure import Robustness
from mnft.figures import (
    DPI,
    MARK,
    draw_caption,
    draw_title,
    replace_missing,
    save_figure,
    shorten,
    style_axes,
)
from mnft.tasks.base import Task
from mnft.text import count

_SIZE = (7.2, 6.6)  # inches
_COLOURS = ("#9ecae1", "#4292c6", "#084594")  # one hue, darker where more is wrong
_EXAMPLES, _SHOWN = 8, 5  # images of the sheet, and corruptions of each
_TILE = 160  # pixels
_CELL = (1.55, 2.05)  # inches, with up to three lines below the image
_LINE_CHARS = 22


def plot_robustness(robustness: Robustness, path: Path) -> None:
    """Draw the figure under each corruption and level as bars, the worst on top, atomically.

    Args:
        robustness: the figures.
        path: the PNG to write.
    """
    figure = Figure(figsize=_SIZE, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    order = robustness.worst
    height = 0.8 / len(LEVELS)
    for level, (name, colour) in enumerate(zip(LEVELS, _COLOURS, strict=True)):
        rates = [robustness.rates[len(LEVELS) * number + level] for number in order]
        values = np.array([[100 * r.value, 100 * r.low, 100 * r.high] for r in rates]).T
        places = np.arange(len(order)) + (level - 1) * height
        axes.barh(places, values[0], height, color=colour, label=name)
        axes.hlines(places, values[1], values[2], color="#333333", linewidth=0.8)
    clean = robustness.clean
    axes.axvspan(100 * clean.low, 100 * clean.high, color=MARK, alpha=0.15, linewidth=0)
    axes.axvline(100 * clean.value, color=MARK, linewidth=1.4, label="clean")
    axes.axvline(
        100 * robustness.mean, color="#333333", linewidth=1, linestyle="--", label="mean corrupted"
    )
    axes.set_yticks(range(len(order)), [CORRUPTIONS[number].name for number in order])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{robustness.title} in %, with 95% intervals")
    style_axes(axes)
    axes.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    title = (
        f"mean {robustness.title} under corruption {robustness.mean:.1%}, clean "
        f"{clean.value:.1%}, {count(robustness.num_images, 'image')}"
    )
    draw_title(axes, title, width=_SIZE[0], size=10)
    save_figure(figure, path)


def find_examples(robustness: Robustness) -> list[tuple[int, list[int]]]:
    """Images that are right when clean and most often wrong when corrupted, the worst first.

    Args:
        robustness: the figures.

    Returns:
        The position of each image, and the variants under which it is wrong: of each corruption
        the lightest, the light ones first, and of one level those first that are worst overall.
    """
    lost = robustness.clean_ratings - robustness.ratings.mean(axis=0)
    right = robustness.clean_ratings >= 1.0
    chosen = [int(i) for i in np.argsort(-lost, kind="stable") if right[i] and lost[i] > 0]
    examples = []
    for position in chosen[:_EXAMPLES]:
        wrong: dict[int, int] = {}
        for number, variant in enumerate(VARIANTS):
            if robustness.ratings[number, position] < 1.0:
                wrong.setdefault(variant.corruption, number)
        rank = {corruption: place for place, corruption in enumerate(robustness.worst)}
        numbers = sorted(
            wrong.values(), key=lambda n: (VARIANTS[n].level, rank[VARIANTS[n].corruption])
        )
        examples.append((position, numbers[:_SHOWN]))
    return examples


def plot_examples(robustness: Robustness, images: ImageSet, task: Task, path: Path) -> bool:
    """Draw the images that corruptions harm most, each beside what is made of it, atomically.

    Args:
        robustness: the figures.
        images: the images.
        task: says what the model answers.
        path: the PNG to write.

    Returns:
        Whether there are any; nothing is written where no image becomes wrong.
    """
    examples = find_examples(robustness)
    if not examples:
        return False
    width, height = (1 + _SHOWN) * _CELL[0], len(examples) * _CELL[1] + 0.3
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    title = "right when clean, and most often wrong when corrupted: what the model says"
    figure.text(0.06 / width, 1, title, fontsize=9.5, va="top")
    answers = task.build_answers(1)
    for row, (position, numbers) in enumerate(examples):
        sample = images.samples[position]
        try:
            pixels = decode_for_corruption(images, sample)
        except DataError:  # gone since it was evaluated: no reason to lose the figures
            continue
        wrong = int((robustness.ratings[:, position] < 1.0).sum())
        often = f"wrong in {wrong} of {len(VARIANTS)}"
        tiles = [(pixels, [sample.label or "no label", often, Path(sample.path).name])]
        for number in numbers:
            said = answers.as_cells(robustness.outputs[number, position])[0] or "nothing"
            shown = show_variant(pixels, sample, VARIANTS[number])
            tiles.append((shown, [str(VARIANTS[number]), said]))
        for column, (tile, lines) in enumerate(tiles):
            left, top = column * _CELL[0] + 0.06, height - 0.3 - row * _CELL[1]
            side = _CELL[0] - 0.12
            place = (left / width, (top - side) / height, side / width, side / height)
            _draw_tile(figure.add_axes(place), tile, lines)
    save_figure(figure, path)
    return True


def _draw_tile(axes: Axes, pixels: NDArray[Any], lines: list[str]) -> None:
    axes.axis("off")
    axes.imshow(ImageOps.pad(Image.fromarray(pixels), (_TILE, _TILE), color="white"))
    draw_caption(axes, [shorten(replace_missing(line), _LINE_CHARS) for line in lines])
