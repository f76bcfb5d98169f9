"""The curve of a training as a PNG: loss and metrics over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnft.results import EpochResult

_SIZE = (10.0, 4.0)  # inches
_DPI = 110
# Colours of Okabe and Ito; line and marker tell the same without colour.
_TRAIN = {"color": "#d55e00", "linestyle": "--", "marker": "s", "markerfacecolor": "white"}
_VAL = {"color": "#0072b2", "linestyle": "-", "marker": "o"}
_MACRO = {"color": "#000000", "linestyle": ":", "marker": "^"}
_MICRO = {"color": "#009e73", "linestyle": "-.", "marker": "v"}
_FIGURES = {"map": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1", "loss": "loss"}
_MAX_MARKED = 40  # epochs; beyond that markers hide the line


def plot_training(results: Sequence[EpochResult], path: Path, *, monitor: str) -> None:
    """Draw loss, mAP and F1 over the epochs as a PNG, atomically, with the best epoch marked.

    The head stage, which comes before the first epoch, is drawn as epoch 0.

    Args:
        results: the head stage, if any, and the epochs, in order; at least one.
        path: the PNG to write.
        monitor: what chose the best epoch.
    """
    # matplotlib is imported here, where it is needed, and not when a training begins.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mnft.figures import mark_epochs, save_figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    size = 4 if len(results) <= _MAX_MARKED else 0
    lines: tuple[tuple[Any, str, float, str, dict[str, str]], ...] = (
        (losses, "train_loss", 1, "training", _TRAIN),
        (losses, "val_loss", 1, "validation", _VAL),
        (scores, "val_map", 100, "mAP", _VAL),
        (scores, "val_macro_f1", 100, "macro F1", _MACRO),
        (scores, "val_micro_f1", 100, "micro F1", _MICRO),
    )
    for axes, name, unit, label, style in lines:
        # The head is fitted to images without augmentation, so its training loss and that of the
        # epochs cannot be compared, and no line connects them.
        first = 1 if results[0].stage == "head" and name == "train_loss" else 0
        for part, text in ((results[:first], None), (results[first:], label)):
            xs = [result.epoch for result in part]
            ys = [unit * result.figures[name] for result in part]
            axes.plot(xs, ys, label=text, linewidth=1.5, markersize=size, **style)
    best = [result for result in results if result.is_best][-1:]
    for axes in (losses, scores):
        mark_epochs(axes, results)
        axes.legend(fontsize=9, loc="best", framealpha=0.9)
    losses.set_ylabel("loss (mean of the labels, in nats)")
    scores.set_ylabel("validation: mAP in %, F1 x 100")
    losses.set_title(
        "training figures: augmented images, weights still changing", loc="left", fontsize=9.5
    )
    for result in best:
        where = "the head stage" if result.stage == "head" else f"epoch {result.epoch}"
        value = f"validation mAP {result.figures['val_map']:.2%}"
        title = f"best by {_FIGURES[monitor]}: {where} ({value})"
        scores.set_title(title, loc="left", fontsize=9.5)
    save_figure(figure, path)
