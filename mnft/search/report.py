"""What a search shows and writes of its trials: rows, trials.csv, the Pareto front, importance."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mnft import files
from mnft.config.source import dump_inline
from mnft.search.choose import list_best
from mnft.search.rungs import find_front
from mnft.search.study import Search
from mnft.text import guard_cell

# So many trials for each key that was tried, and for all of them, before importance means much.
_FOR_A_KEY, _LEAST = 4, 12
_STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
}


def write_table(search: Search) -> None:
    """Write trials.csv: one row a trial, with what it tried and what came of it."""
    names = [d.key for d in search.space.dimensions]
    figures = sorted({n for t in search.list_trials() for n in t.user_attrs.get("figures", {})})
    costs = ["parameters", "macs_m", "latency_ms", "size_mb"]
    heading = ["trial", "state", *names, *(f"val_{n}" for n in figures), *costs]
    rows: list[list[object]] = [[*heading, "best_epoch", "epochs", "seconds", "reason", "run"]]
    for trial in search.list_trials():
        facts = trial.user_attrs
        tried = search.space.decode(trial.params) if len(trial.params) == len(names) else {}
        measured = facts.get("costs", {})
        rows.append(
            [
                trial.number,
                _STATES[trial.state],
                *(guard_cell(dump_inline(tried[n])) if n in tried else "" for n in names),
                *(facts.get("figures", {}).get(n, "") for n in figures),
                *("" if measured.get(n) is None else measured[n] for n in costs),
                *(facts.get(n, "") for n in ("best_epoch", "epochs", "seconds")),
                guard_cell(explain_end(trial)),
                search.folder.trial(facts.get("same_as", trial.number)).name,
            ]
        )
    with files.atomic_path(search.folder.table) as temporary:
        files.write_csv(temporary, rows)


def explain_end(trial: FrozenTrial) -> str:
    """Why a trial ended as it did; empty for one that trained to its end."""
    facts = trial.user_attrs
    if "same_as" in facts:
        return f"the point of trial {facts['same_as']}"
    return str(facts.get("error") or facts.get("stopped", ""))


def build_table(
    search: Search, trials: Sequence[FrozenTrial]
) -> tuple[list[str], list[list[object]]]:
    """The headings and rows of trials for people."""
    keys = [d.key for d in search.space.dimensions]
    short = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    shown = [k if short.count(s) > 1 else s for k, s in zip(keys, short, strict=True)]
    headings = ["trial", *shown, "epochs", f"val {search.figure}", *search.objectives[1:], ""]
    rows: list[list[object]] = []
    for trial in trials:
        tried = search.space.decode(trial.params) if len(trial.params) == len(keys) else {}
        facts = trial.user_attrs
        value = facts.get("figures", {}).get(search.figure, facts.get("newest"))
        costs = facts.get("costs", {})
        rows.append(
            [
                trial.number,
                *(_format(tried[key]) if key in tried else "" for key in keys),
                facts.get("epochs", facts.get("epoch", "")),
                "" if value is None else f"{value:.4f}",
                *(_format(costs[name]) if name in costs else "" for name in search.objectives[1:]),
                _STATES[trial.state],
            ]
        )
    return headings, rows


def _format(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else dump_inline(value)


def list_front(search: Search) -> list[FrozenTrial]:
    """The trials that no other one dominates, by their first objective."""
    complete = list_best(search)
    signed = [
        [-v if low else v for v, low in zip(trial.values, search.lower, strict=True)]
        for trial in complete
    ]
    front = [complete[place] for place in find_front(signed)]
    return sorted(front, key=lambda trial: trial.values[1:])


def compute_importance(search: Search) -> dict[str, float] | None:
    """The share of each key in how figures differ (fANOVA: Hutter, Hoos, Leyton-Brown 2014).

    None with too few trials to tell.
    """
    complete = [t for t in search.list_trials() if t.state is TrialState.COMPLETE]
    tried = [d for d in search.space.dimensions if d.choices is None or len(d.choices) > 1]
    values: set[Any] = {trial.values[0] for trial in complete}
    if len(tried) < 2 or len(complete) < max(_LEAST, _FOR_A_KEY * len(tried)) or len(values) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.importance.get_param_importances(
            search.study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            params=[dimension.key for dimension in tried],
            target=lambda trial: trial.values[0],
        )


def describe_left(search: Search, workers: int) -> str:
    """The trials that are left and the time that they take, as the end of a line."""
    trials = search.list_trials()
    ended = [trial for trial in trials if trial.state.is_finished()]
    if search.total is None:
        return f"; {len(ended)} done"
    times = [t.user_attrs["seconds"] for t in ended if t.user_attrs.get("seconds")]
    left = search.total - len(ended)
    if not times or not left:
        return f"; {left} left"
    seconds = statistics.fmean(times) * left / max(1, workers)
    shown = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"; {left} left, about {shown}"
