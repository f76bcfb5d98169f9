"""The files of a robustness evaluation: figures as JSON and CSV, a plot, and the worst examples."""

from __future__ import annotations

from pathlib import Path

from mnft import files
from mnft.data.corruptions import CORRUPTIONS, LEVELS
from mnft.evaluation.images import ImageSet
from mnft.evaluation.robustness.batches import VARIANTS
from mnft.evaluation.robustness.measure import Robustness
from mnft.tasks.base import Task

FIGURES, TABLE = "robustness.json", "robustness.csv"
PLOT, EXAMPLES = "robustness.png", "robustness_worst.png"
ROBUSTNESS_FILES = frozenset({FIGURES, TABLE, PLOT, EXAMPLES})


def write_robustness(folder: Path, robustness: Robustness, images: ImageSet, task: Task) -> None:
    """Write robustness.json, .csv and .png, and robustness_worst.png if an image is ever wrong.

    Args:
        folder: folder of the evaluation.
        robustness: the figures.
        images: the images, which the worst examples are drawn from.
        task: says what the model answers.
    """
    # `mnft eval` needs this module, but matplotlib only if there is something to draw.
    from mnft.evaluation.robustness.panels import plot_examples, plot_robustness

    files.write_json(folder / FIGURES, robustness.as_record())
    rate = robustness.clean
    rows: list[list[object]] = [
        ["corruption", "unit", "level", "amount", robustness.figure, "low", "high", "images"],
        ["clean", "", "", "", rate.value, rate.low, rate.high, robustness.num_images],
    ]
    for variant, rate in zip(VARIANTS, robustness.rates, strict=True):
        corruption = CORRUPTIONS[variant.corruption]
        what = [corruption.name, corruption.unit, LEVELS[variant.level], f"{variant.amount:g}"]
        rows.append([*what, rate.value, rate.low, rate.high, robustness.num_images])
    with files.atomic_path(folder / TABLE) as temporary:
        files.write_csv(temporary, rows)
    plot_robustness(robustness, folder / PLOT)
    plot_examples(robustness, images, task, folder / EXAMPLES)
