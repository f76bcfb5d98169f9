"""The plot of a learning curve, with what it expects of more images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mnft.figures import DPI, MARK, draw_title, save_figure, style_axes
from mnft.training.head.curve import CurvePoint
from mnft.training.head.law import Forecast

_SIZE = (7.0, 4.4)
_BLUE = "#08519c"


def plot_curve(
    points: Sequence[CurvePoint],
    expected: Forecast,
    path: Path,
    *,
    figure: str,
    title: str,
) -> None:
    """Plot the figure over the number of training images as a PNG, atomically.

    Args:
        points: the curve; each draw is a point, their mean is marked.
        expected: the forecast, drawn with its band.
        path: where to write the PNG.
        figure: name of the figure.
        title: title of the plot.
    """
    canvas = Figure(figsize=_SIZE, dpi=DPI, facecolor="white")
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0, 0, 1, 1))
    sizes = [point.images for point in points]
    for point in points:
        axes.plot(
            [point.images] * len(point.figures),
            100 * point.figures,
            ".",
            color="#9db8d2",
            markersize=6,
            label="one draw" if point is points[0] else None,
        )
    means = [100 * float(point.figures.mean()) for point in points]
    axes.plot(sizes, means, "o", color=_BLUE, markersize=6, label="mean of the draws")
    known = np.geomspace(sizes[0], sizes[-1], 100)
    axes.plot(known, 100 * expected.predict(known), color=_BLUE, linewidth=1.5, label="power law")
    further = np.geomspace(sizes[-1], expected.images, 20)
    axes.plot(further, 100 * expected.predict(further), color=MARK, linewidth=1.5, linestyle="--")
    value, low, high = (
        100 * v for v in (expected.figure.value, expected.figure.low, expected.figure.high)
    )
    axes.errorbar(
        [expected.images],
        [value],
        yerr=[[value - low], [high - value]],
        fmt="o",
        color=MARK,
        markersize=7,
        capsize=4,
        label=f"expected of {expected.images:,.0f} images, with 95% band",
    )
    axes.set_xscale("log")
    axes.set_xticks([*sizes, expected.images])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda images, _: f"{images:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training images, on a logarithmic scale", fontsize=10)
    axes.set_ylabel(f"{figure} of the val images in %", fontsize=10)
    style_axes(axes)
    axes.legend(fontsize=9, loc="lower right", framealpha=0.9)
    draw_title(axes, title, width=_SIZE[0], size=10)
    save_figure(canvas, path)
