"""The plot of the learning rate finder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mnft.figures import DPI, MARK, draw_title, save_figure

_CURVE_SIZE = (7.0, 4.2)


def plot_lr_curve(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    path: Path,
    *,
    suggestion: float,
    title: str,
) -> None:
    """Plot the loss over growing learning rates as a PNG, atomically, with the suggestion marked.

    Losses far above the smoothed curve are cut off: once training diverges they have no limit.

    Args:
        lrs: (N,) learning rates, ascending.
        losses: (N,) losses of single batches, drawn as points.
        smoothed: (N,) smoothed losses, drawn as a line.
        path: where to write the PNG.
        suggestion: learning rate to mark, within `lrs`.
        title: title of the plot.
    """
    figure = Figure(figsize=_CURVE_SIZE, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot(lrs, losses, ".", color="#9db8d2", markersize=4, label="one batch")
    axes.plot(lrs, smoothed, color="#08519c", linewidth=2, label="smoothed")
    axes.axvline(suggestion, color=MARK, linewidth=1.2, linestyle="--")
    height = float(np.interp(np.log(suggestion), np.log(lrs), smoothed))
    label = f"suggested: {suggestion:g}"
    axes.plot([suggestion], [height], "o", color=MARK, markersize=7, label=label)
    low, high = min(*losses, *smoothed), max(smoothed)
    margin = 0.15 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_xscale("log")
    axes.set_xlim(lrs[0], lrs[-1])
    axes.set_xlabel("learning rate", fontsize=10)
    axes.set_ylabel("training loss", fontsize=10)
    axes.grid(True, color="#dddddd", linewidth=0.4)
    axes.tick_params(labelsize=9, length=2, width=0.5)
    axes.legend(fontsize=9, loc="best", framealpha=0.9)
    draw_title(axes, title, width=_CURVE_SIZE[0], size=11)
    save_figure(figure, path)
