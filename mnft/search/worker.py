"""One worker: takes a trial, trains it as an ordinary run, and tells what came of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from mnft.config.source import dump_inline
from mnft.device.ranks.distributed import Ranks
from mnft.errors import ConfigError, ExportError, ModelError, TrainError, first_line
from mnft.failures import explain, is_out_of_memory
from mnft.reporter import Reporter
from mnft.results import EpochResult, StepProgress
from mnft.runs.begin import Run, opened_run
from mnft.runs.folder import RunFolder, log_event
from mnft.runs.writer import draw_curve, recorded
from mnft.search.costs import Costs, measure_costs
from mnft.search.points.space import Point, describe_point, list_overrides
from mnft.search.rungs import goes_on
from mnft.search.study import Job, Search, find_twin, is_waiting, take
from mnft.signals import stop_request
from mnft.training import stages

# What one point may do to a training, while the next one trains well.
_OF_THE_POINT = (TrainError, ModelError, ConfigError, ExportError)
_MAX_FAILURES = 3
POLL_S = 1.0


class _Stop(Exception):
    """A trial is not worth more epochs; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training ended with.

    Attributes:
        figures: figures of the val split in the best epoch.
        best_epoch: number of that epoch; 0 is the fitted head.
        epochs: epochs that were trained.
        seconds: time that they took.
        stopped: why the training ended early, or empty.
        costs: what the model costs.
    """

    figures: Mapping[str, float]
    best_epoch: int
    epochs: int
    seconds: float
    stopped: str
    costs: Costs


class Display(Reporter):
    """What a search shows of its trials beside what a training shows."""

    def begin(self, number: int, point: Point) -> AbstractContextManager[Reporter]:
        """A trial begins; gives the reporter of its training."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Something changed in the storage."""


def work(search: Search, display: Display) -> None:
    """Train trials until there are no more.

    Raises:
        MnftError: the storage is gone, the images cannot be used, or every trial so far failed.
        Interrupted: what is saved can be resumed.
    """
    failures = 0
    while True:
        with stop_request.deferred():
            job = take(search)
        if job is None:
            if not is_waiting(search):
                return
            time.sleep(POLL_S)  # another worker may die, and leave its trial
            continue
        try:
            if (twin := find_twin(search, job)) is not None:
                _tell_twin(search, job, twin)
            else:
                _train_trial(search, job, display)
            failures = 0
        except Exception as error:
            if not is_of_the_point(error):
                raise
            told = explain(error)
            message = told.message if told else first_line(error)
            search.note(job.number, error=message)
            search.tell(job.number, TrialState.FAIL)
            failures += 1
            if failures >= _MAX_FAILURES and not _any_complete(search):
                raise
            display.warn(f"trial {job.number} failed: {message}")
        finally:
            job.lock.release()
            free_memory()
        display.refresh()


def is_of_the_point(error: Exception) -> bool:
    """Whether another point may train well after this error."""
    return isinstance(error, _OF_THE_POINT) or is_out_of_memory(error)


def _any_complete(search: Search) -> bool:
    return any(trial.state is TrialState.COMPLETE for trial in search.list_trials())


def _tell_twin(search: Search, job: Job, twin: FrozenTrial) -> None:
    """Tell of a point that was trained before what came of it then: it would be the same again."""
    facts = {name: twin.user_attrs[name] for name in ("figures", "costs", "epochs", "best_epoch")}
    with stop_request.deferred():
        search.note(job.number, **facts, same_as=twin.number)
        values = twin.values if twin.state is TrialState.COMPLETE else None
        search.tell(job.number, twin.state, values)


def _train_trial(search: Search, job: Job, display: Display) -> None:
    again = " again: the process that began it is gone" if job.again else ""
    display.note(f"trial    {job.number}{again}: {describe_point(job.point)}")
    with display.begin(job.number, job.point) as reporter:
        outcome = train_run(search, search.folder.trial(job.number), job.point, reporter, job=job)
    with stop_request.deferred():
        _tell(search, job, outcome)


def _tell(search: Search, job: Job, outcome: Outcome) -> None:
    search.note(job.number, **asdict(outcome))
    values = [outcome.figures[search.figure]] if outcome.figures else []
    values += [asdict(outcome.costs)[name] for name in search.objectives[1:]]
    if outcome.stopped:
        search.tell(job.number, TrialState.PRUNED)
    else:
        search.tell(job.number, TrialState.COMPLETE, values)


def train_run(
    search: Search,
    path: Path,
    point: Point,
    reporter: Reporter,
    *,
    job: Job | None = None,
    seed: int | None = None,
) -> Outcome:
    """Train a point in a run folder, or resume it there.

    Args:
        search: the search.
        path: the run folder.
        point: what to try.
        reporter: told of progress and epochs.
        job: the trial, which rungs and limits may stop; None for a further seed.
        seed: `train.seed`; None for that of the config.

    Raises:
        MnftError: the training failed.
    """
    began = RunFolder(path).config.is_file()
    overrides = [
        f"run.dir={dump_inline(str(path.parent))}",
        f"run.name={path.name}",
        *list_overrides(point),
        *([f"train.seed={seed}"] if seed is not None else []),
    ]
    with (
        opened_run(
            None if began else search.folder.base,
            [] if began else overrides,
            path if began else None,
            Ranks(),
            reporter,
        ) as run,
        recorded(run) as checkpointer,
    ):
        training, stopped = run.training, ""
        costs = measure_costs(search.folder, training, search.objectives, search.config.search)
        try:
            if job is not None:
                _check_limits(search, job, costs)
                reporter = _Rungs(search, job, costs, reporter)
                for result in training.state.results:  # a process that was killed may not have
                    reporter.judge(result)
            stages.train(training, checkpointer=checkpointer, reporter=reporter)
        except _Stop as stop:
            stopped = str(stop)
            log_event(run.folder, "stop", {"reason": stopped})
    if not stopped:
        draw_curve(run.folder, training.task, training.state.results, search.config.eval.monitor)
    return _summarise(run, costs, stopped)


def _summarise(run: Run, costs: Costs, stopped: str) -> Outcome:
    state, task = run.training.state, run.training.task
    best = state.best
    return Outcome(
        figures={} if best is None else {n: best.figures[f"val_{n}"] for n in task.monitors},
        best_epoch=0 if best is None else best.epoch,
        epochs=len(state.history),
        seconds=sum(result.seconds for result in state.results),
        stopped=stopped,
        costs=costs,
    )


def _check_limits(search: Search, job: Job, costs: Costs) -> None:
    measured, limits = asdict(costs), search.config.search.limits
    search.constrain(job, {name: measured[name] / most - 1 for name, most in limits.items()})
    for name, most in limits.items():
        if measured[name] > most:
            raise _Stop(f"{name} {measured[name]:.3g} is above {most:g}")


class _Rungs(Reporter):
    """Passes on what a training reports, and stops it at rungs."""

    def __init__(self, search: Search, job: Job, costs: Costs, reporter: Reporter) -> None:
        self._search = search
        self._job = job
        self._number = job.number
        self._costs = asdict(costs)
        self._reporter = reporter
        self.note = reporter.note  # type: ignore[method-assign]
        self.warn = reporter.warn  # type: ignore[method-assign]
        self.track = reporter.track  # type: ignore[method-assign]
        self.count = reporter.count  # type: ignore[method-assign]

    def on_step(self, progress: StepProgress) -> None:
        """Pass it on."""
        self._reporter.on_step(progress)

    def on_epoch(self, result: EpochResult) -> None:
        """Pass it on, and judge the trial if the epoch is a rung."""
        self._reporter.on_epoch(result)
        with stop_request.deferred():
            self.judge(result)

    def judge(self, result: EpochResult) -> None:
        """Compare the trial with the others at this epoch, unless that was done.

        Raises:
            _Stop: it is among the worse ones.
        """
        search, name = self._search, f"rung {result.epoch}"
        value = result.figures[f"val_{search.figure}"]
        search.report(self._job, result.epoch, value)
        if result.epoch not in search.config.search.rungs:
            search.note(self._number, epoch=result.epoch, newest=value)
            return
        with search.folder.waiting("rungs"):
            at_rung = {t.number: t.user_attrs.get(name) for t in search.list_trials()}
            known: dict[str, Any] | None = at_rung.pop(self._number, None)
            if known is None:
                values = [value, *(self._costs[cost] for cost in search.objectives[1:])]
                signed = [-v if low else v for v, low in zip(values, search.lower, strict=True)]
                others = [other["objectives"] for other in at_rung.values() if other]
                known = {"objectives": signed, "goes_on": goes_on(signed, others)}
                search.note(self._number, **{name: known, "epoch": result.epoch, "newest": value})
        if not known["goes_on"]:
            raise _Stop(f"among the worse two thirds after epoch {result.epoch}")


def free_memory() -> None:
    """Give back what the last training held, before the next one measures what is free."""
    # Python drops what a signal raises while an object is being removed: the signal would be lost.
    with stop_request.deferred():
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    stop_request.raise_if_dropped()  # objects were removed at the end of the training, too
