"""The plot of a search with several objectives: all trials, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from mnft.figures import draw_title, save_figure, style_axes
from mnft.search.study import Search

_SIZE = (8.0, 5.0)  # inches
_DPI = 130
_FRONT, _OTHERS = "#0072b2", "#999999"
_UNITS = {"latency_ms": "latency, ms", "macs_m": "10^6 MACs", "size_mb": "size, MB"}


def plot_front(search: Search, front: Sequence[FrozenTrial]) -> None:
    """Draw the figure against the first cost as pareto.png, atomically.

    Args:
        search: a search with several objectives.
        front: the trials that no other one dominates, by that cost.
    """
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    style_axes(axes)
    others = [
        trial
        for trial in search.list_trials()
        if trial.state is TrialState.COMPLETE and trial.number not in {t.number for t in front}
    ]
    axes.scatter(
        [trial.values[1] for trial in others],
        [trial.values[0] for trial in others],
        color=_OTHERS,
        label="other trials",
    )
    costs = [trial.values[1] for trial in front]
    values = [trial.values[0] for trial in front]
    axes.plot(costs, values, "o-", color=_FRONT, drawstyle="steps-post", label="Pareto front")
    for trial in front:
        axes.annotate(
            str(trial.number),
            (trial.values[1], trial.values[0]),
            textcoords="offset points",
            xytext=(5, 5),
        )
    axes.set_xlabel(_UNITS[search.objectives[1]])
    axes.set_ylabel(f"val {search.figure}")
    axes.legend(frameon=False)
    draw_title(axes, f"{search.folder.path.name}: trials by number", width=_SIZE[0], size=11)
    save_figure(figure, search.folder.front)
