"""The curve of a training as a PNG: loss and metric over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnft.results import EpochResult

_SIZE = (10.0, 4.0)  # inches
_DPI = 110
# The blue and the vermilion of Okabe and Ito; line and marker tell the same without colour.
_VAL = {"color": "#0072b2", "linestyle": "-", "marker": "o"}
_TRAIN = {"color": "#d55e00", "linestyle": "--", "marker": "s", "markerfacecolor": "white"}
_OTHER = {"color": "#000000", "linestyle": ":", "marker": "^"}
_METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "loss"}
_MAX_MARKED = 40  # epochs; beyond that markers hide the line


def plot_training(results: Sequence[EpochResult], path: Path, *, monitor: str) -> None:
    """Draw loss and accuracy over the epochs as a PNG, atomically, with the best epoch marked.

    The head stage, which comes before the first epoch, is drawn as epoch 0.

    Args:
        results: the head stage, if any, and the epochs, in order; at least one.
        path: the PNG to write.
        monitor: what chose the best epoch; "macro_f1" is drawn beside the accuracy.
    """
    # matplotlib is imported here, where it is needed, and not when a training begins.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mnft.figures import mark_epochs, save_figure

    epochs = [result.epoch for result in results]
    best = [result for result in results if result.is_best][-1:]
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    size = 4 if len(epochs) <= _MAX_MARKED else 0
    for axes, train, val in (
        (
            losses,
            [r.figures["train_loss"] for r in results],
            [r.figures["val_loss"] for r in results],
        ),
        (
            scores,
            [100 * r.figures["train_accuracy"] for r in results],
            [100 * r.figures["val_accuracy"] for r in results],
        ),
    ):
        # The head is fitted to images without augmentation, so its training loss and that of the
        # epochs cannot be compared, and no line connects them.
        first = 1 if results[0].stage == "head" else 0
        axes.plot(epochs[:first], train[:first], markersize=4, **_TRAIN)
        axes.plot(
            epochs[first:],
            train[first:],
            label="training",
            linewidth=1.3,
            markersize=size,
            **_TRAIN,
        )
        axes.plot(epochs, val, label="validation", linewidth=1.8, markersize=size, **_VAL)
    if monitor == "macro_f1":
        values = [100 * r.figures["val_macro_f1"] for r in results]
        label = "validation, macro F1"
        scores.plot(epochs, values, label=label, linewidth=1.3, markersize=size, **_OTHER)
    for axes in (losses, scores):
        mark_epochs(axes, results)
    losses.set_ylabel("loss (cross-entropy in nats)")
    scores.set_ylabel("accuracy in %" + ", macro F1 x 100" * (monitor == "macro_f1"))
    for result in best:
        where = "the head stage" if result.stage == "head" else f"epoch {result.epoch}"
        scores.set_title(
            f"best by {_METRICS[monitor]}: {where} (validation accuracy "
            f"{result.figures['val_accuracy']:.2%})",
            loc="left",
            fontsize=9.5,
        )
    losses.set_title(
        "training figures: augmented images, weights still changing", loc="left", fontsize=9.5
    )
    scores.legend(fontsize=9, loc="best", framealpha=0.9)
    save_figure(figure, path)
