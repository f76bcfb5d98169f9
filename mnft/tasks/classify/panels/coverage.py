"""The plot of an evaluation that shows what a threshold costs: accuracy against answers given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mnft.figures import DPI, MARK, save_figure, style_axes
from mnft.tasks.classify.decision.threshold import Kept, compute_curve
from mnft.tasks.classify.intervals import compute_wilson_interval

_SIZE = (5.6, 4.0)
_BLUE = "#0072b2"
_MAX_POINTS = 500  # with more, the plot shows no more


def plot_coverage(
    scores: NDArray[Any], correct: NDArray[Any], path: Path, *, decision: Kept | None
) -> None:
    """Draw accuracy among the kept answers against their fraction as a PNG, atomically.

    Args:
        scores: (N,) float, from `decision.threshold.answer`.
        correct: (N,) bool, whether the most probable class is right.
        path: the PNG to write.
        decision: what the model's threshold keeps, which is marked; None without one.
    """
    _, kept, hits = compute_curve(scores, correct)
    shown = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _MAX_POINTS)).astype(int))
    kept, hits = kept[shown], hits[shown]
    share = 100 * kept / len(scores)
    bands = [compute_wilson_interval(int(h), int(k)) for h, k in zip(hits, kept, strict=True)]
    figure = Figure(figsize=_SIZE, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.fill_between(
        share,
        [100 * band.low for band in bands],
        [100 * band.high for band in bands],
        color=_BLUE,
        alpha=0.15,
        linewidth=0,
        label="95% interval",
    )
    axes.plot(share, 100 * hits / np.maximum(kept, 1), color=_BLUE, linewidth=1.5, label="accuracy")
    if decision is not None and decision.accuracy is not None:
        label = f"threshold {decision.threshold:g}"
        place = (100 * decision.share, 100 * decision.accuracy)
        axes.plot(*place, "o", color=MARK, markersize=7, label=label)
    # The first few answers jump up and down; what they say is in the band.
    lows = [100 * band.low for band, k in zip(bands, kept, strict=True) if 20 * k >= len(scores)]
    axes.set_ylim(max(0, min(lows, default=0) - 3), 101)
    axes.set_xlim(0, 101)
    axes.set_xlabel("images whose class is named, the most probable first, in %")
    axes.set_ylabel("accuracy among these in %")
    axes.legend(fontsize=9, frameon=False, loc="lower left")
    style_axes(axes)
    save_figure(figure, path)
