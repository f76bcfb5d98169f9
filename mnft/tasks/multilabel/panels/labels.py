"""Plots of the labels of an evaluation: precision against recall, and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mnft.figures import DPI, find_fonts, make_drawable, save_figure, shorten, style_axes
from mnft.tasks.multilabel.evaluation import Evaluation, LabelMetrics
from mnft.text import count

_SIZE = (8.6, 5.2)  # inches
_CURVES = 7  # as many as there are colours
# The colours of Okabe and Ito; the line styles tell the same without colour.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_BARS = 40
_BAR = 0.24  # inches


def plot_curves(
    logits: NDArray[Any], targets: NDArray[Any], evaluation: Evaluation, path: Path
) -> None:
    """Draw precision against recall for each label, or the worst of many, as a PNG, atomically.

    A point marks the label's threshold.

    Args:
        logits: (N, K) float.
        targets: (N, K) float: 1, 0 or NaN.
        evaluation: their figures.
        path: the PNG to write.
    """
    listed, what = _choose(evaluation, _CURVES)
    names, legend = _name(evaluation, listed)
    figure = Figure(figsize=_SIZE, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines, captions = [], []
    for (place, metrics), colour, style in zip(listed, _COLOURS, _STYLES, strict=False):
        precision, recall = compute_curve(logits[:, place], targets[:, place])
        captions.append(f"{names[place]}  {metrics.average_precision:.3f}")
        (line,) = axes.plot(
            100 * recall,
            100 * precision,
            color=colour,
            linestyle=style,
            linewidth=1.6,
            drawstyle="steps-pre",
        )
        lines.append(line)
        if metrics.decided:
            point = (100 * metrics.recall, 100 * metrics.precision)
            axes.plot(*point, "o", color=colour, markersize=7, markeredgecolor="white")
    axes.set_xlim(-1, 101)
    axes.set_ylim(-2, 103)
    axes.set_xlabel("recall in %" + (f"\n{legend}" if legend else ""))
    axes.set_ylabel("precision in %")
    style_axes(axes)
    if listed:
        legend_box = axes.legend(
            lines,
            ["-"] * len(lines),
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            frameon=False,
            title="label, average precision\npoint: at its threshold",
            title_fontsize=8.5,
            alignment="left",
            prop={"family": find_fonts(names), "size": 9},
        )
        # As it is: matplotlib would hide a name that starts with "_", and read "$" as a formula.
        for text, caption in zip(legend_box.get_texts(), captions, strict=True):
            text.set_parse_math(False)
            text.set_text(caption)
    axes.set_title(f"{what}; {_summary(evaluation)}", loc="left", fontsize=9.5)
    save_figure(figure, path)


def plot_average_precision(evaluation: Evaluation, path: Path) -> None:
    """Draw the average precision of each label, or the worst of many, as a PNG, atomically.

    A line shows the 95% bootstrap interval, a tick the precision of chance: the fraction of the
    images that have the label.

    Args:
        evaluation: the figures.
        path: the PNG to write.
    """
    listed, what = _choose(evaluation, _BARS)
    names, legend = _name(evaluation, listed)
    height = 1.3 + _BAR * max(len(listed), 3)
    figure = Figure(figsize=(7.6, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(listed))
    values = [100 * (metrics.average_precision or 0.0) for _, metrics in listed]
    axes.barh(places, values, height=0.7, color="#b3cfe5", edgecolor="#0072b2", linewidth=0.6)
    for y, (_, metrics) in enumerate(listed):
        if interval := metrics.average_precision_interval:
            axes.hlines(y, 100 * interval.low, 100 * interval.high, color="#0072b2", linewidth=1.4)
        chance = 100 * metrics.support / metrics.known
        axes.vlines(chance, y - 0.35, y + 0.35, color="#d55e00", linewidth=1.4)
        text = f"{metrics.support:,} of {metrics.known:,}"
        axes.text(102, y, text, va="center", fontsize=8, color="#555555")
    shown = [names[place] for place, _ in listed]
    axes.set_yticks(places, shown, fontsize=8.5, fontfamily=find_fonts(names), parse_math=False)
    axes.set_ylim(max(len(listed), 1) - 0.4, -0.6)  # the best above
    axes.set_xlim(0, 100)
    note = "line: 95% interval; orange: chance; right: images with the label, of those known"
    axes.set_xlabel(f"average precision in %\n{note}" + (f"\n{legend}" if legend else ""))
    style_axes(axes)
    axes.set_title(f"{what}; {_summary(evaluation)}", loc="left", fontsize=9.5)
    save_figure(figure, path)


def compute_curve(logits: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Precision and recall at each distinct score, the highest first, from recall 0 on.

    Args:
        logits: (N,) float.
        targets: (N,) float: 1, 0 or NaN, with at least one 1.

    Returns:
        (G + 1,) precision and recall, float64.
    """
    known = ~np.isnan(targets)
    order = np.argsort(-logits[known], kind="stable")
    scores, present = logits[known][order], targets[known][order] == 1
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    hits = present.cumsum()[ends]
    precision, recall = hits / (ends + 1), hits / present.sum()
    return np.append(precision[:1], precision), np.append(0.0, recall)


def _choose(evaluation: Evaluation, limit: int) -> tuple[list[tuple[int, LabelMetrics]], str]:
    """The labels with an average precision, the best first, or the worst of them."""
    listed = [(k, m) for k, m in enumerate(evaluation.per_label) if m.average_precision is not None]
    listed.sort(key=lambda entry: -(entry[1].average_precision or 0.0))
    what = "all labels" if len(listed) > 1 else count(len(listed), "label")
    if len(listed) > limit:
        what = f"the {limit} worst of {len(listed)} labels"
    return listed[-limit:], what


def _name(
    evaluation: Evaluation, listed: Sequence[tuple[int, LabelMetrics]]
) -> tuple[list[str], str | None]:
    """All names as they can be drawn, and what numbers in the listed ones mean."""
    names = [metrics.name for metrics in evaluation.per_label]
    drawable, legend = make_drawable(names, numbering="rows of per_label.csv")
    changed = any(drawable[place] != metrics.name for place, metrics in listed)
    return [shorten(name) for name in drawable], legend if changed else None


def _summary(evaluation: Evaluation) -> str:
    low, high = 100 * evaluation.map_interval.low, 100 * evaluation.map_interval.high
    interval = f"95% interval {low:.1f}% to {high:.1f}%"
    return f"mAP {evaluation.map:.1%} ({interval}), {evaluation.num_images:,} images"
