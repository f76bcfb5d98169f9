"""`mnft search`: train a config with different values, and name one of them honestly."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import console
from mnft.config.load import load_config
from mnft.config.source import Source
from mnft.data.fetch import catalog
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import keep_freed_memory
from mnft.errors import Interrupted, TrainError
from mnft.reporter import Reporter
from mnft.results import EpochResult, StepProgress
from mnft.runs.begin import check_early
from mnft.runs.folder import default_name
from mnft.search.choose import (
    Choice,
    choose,
    list_best,
    run_test,
    train_seeds,
    write_best,
    write_result,
)
from mnft.search.costs import check_exports
from mnft.search.folder import make_folder
from mnft.search.plot import plot_front
from mnft.search.points.checks import build_space
from mnft.search.points.space import Point, describe_point
from mnft.search.processes import count_workers, end_with_parent, run_workers
from mnft.search.report import (
    build_table,
    compute_importance,
    describe_left,
    explain_end,
    list_front,
    write_table,
)
from mnft.search.study import Search, open_search
from mnft.search.worker import Display, work
from mnft.text import count

_SHOWN = 10
_REDRAW_S = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """What to search, and with how many processes.

    Attributes:
        config: the config file, with a `search` section.
        workers: number of worker processes; None for one a GPU, or this process without GPUs.
        join: whether the search must have begun already.
        is_worker: whether this process is a worker, which trains and chooses nothing.
    """

    config: Path
    workers: int | None
    join: bool
    is_worker: bool


def run(request: Request, overrides: Sequence[str], *, as_json: bool) -> None:
    """Search, or continue a search; each trial is a run folder.

    Raises:
        MnftError: the search cannot begin, its storage is gone, or no trial could be trained.
        Interrupted: by Ctrl-C or SIGTERM; the same command continues.
    """
    keep_freed_memory()
    if request.is_worker:
        end_with_parent()
    config, source = load_config(request.config, overrides)
    with source.locating():
        space = build_space(config, source)
        check_early(config, Ranks(), new_run=False)
        check_exports(config.search)
        name = config.search.name or default_name(request.config)
        place = Path(config.search.dir).expanduser() / name
        folder = make_folder(place, must_exist=request.join or request.is_worker)
        search = open_search(config, source, space, folder)
    with closing(search):
        _search(search, request, overrides, source, as_json=as_json)


def _search(
    search: Search, request: Request, overrides: Sequence[str], source: Source, *, as_json: bool
) -> None:
    """Train the trials, alone or by workers; then choose, test and show."""
    config, folder = search.config, search.folder
    root = Path(config.data.root).expanduser()
    with folder.waiting("fetch"):  # here, where its progress is shown, and only once
        if not root.exists() and config.data.fetch:
            catalog.fetch(config.data.fetch, root, reporter=console.REPORTER)
    workers = 1 if request.is_worker else count_workers(request.workers, config)
    if not request.is_worker:
        _announce(search, workers)
    options = [part for value in overrides for part in ("--set", value)]
    command = ["search", str(request.config), *options]
    try:
        with _Screen(search, workers) as screen:
            if workers > 1:
                arguments = [*command, "--worker"]
                run_workers(workers, arguments, config, folder, screen.refresh, console.warn)
            # After workers, only what they left behind.
            work(search, screen)
            train_seeds(search, screen)
    except Interrupted as stop:
        raise _describe_stop(search, stop, shlex.join(["mnft", *command])) from stop
    finally:
        if not request.is_worker:
            write_table(search)
    if not request.is_worker:
        with folder.waiting("choose"):
            choice = choose(search)
            if choice is None:
                raise TrainError(
                    f"{folder.path}: no trial trained to its end", hint=f"{folder.table} says why"
                )
            write_best(search, source, choice)
            test = run_test(search, choice, console.REPORTER)
            record = write_result(search, choice, test)
        _show(search, choice, record, as_json=as_json)


def _announce(search: Search, workers: int) -> None:
    settings = search.config.search
    done = sum(trial.state.is_finished() for trial in search.list_trials())
    total = "trials" if search.total is None else count(search.total, "trial")
    within = f" within {settings.minutes:g} minutes" if settings.minutes else ""
    of = ", ".join(dimension.key for dimension in search.space.dimensions)
    console.note(f"search   {settings.method}, {total}{within}: {of}")
    console.note(f"folder   {search.folder.path}; {count(workers, 'worker')}")
    if 0 in settings.rungs:
        console.note(
            "rung 0   the head on frozen features tells backbones, resolutions and data apart, "
            "but says nothing of rates and schedules"
        )
    if search.list_trials():
        console.note(f"resumed  {count(done, 'trial')} of this search are done already")


def _describe_stop(search: Search, stop: Interrupted, command: str) -> Interrupted:
    done = sum(trial.state.is_finished() for trial in search.list_trials())
    total = "" if search.total is None else f" of {search.total}"
    return Interrupted(
        stop.exit_code,
        f"by {stop.by} after {done}{total} trials; the others are saved; continue with: {command}",
        by=stop.by,
    )


class _Screen(Display):
    """The trials as a table on a terminal, and as a line each elsewhere."""

    def __init__(self, search: Search, workers: int) -> None:
        self._search = search
        self._workers = workers
        self._table = console.LiveTable()
        self._caption = ""
        self._drawn_at = 0.0
        self._told = {t.number for t in search.list_trials() if t.state.is_finished()}

    def __enter__(self) -> _Screen:
        self._table.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._table.__exit__()

    def note(self, message: str) -> None:
        """Print a line where there is no table."""
        if not self._table.is_shown:
            console.note(message)

    def warn(self, message: str) -> None:
        """Print a warning."""
        console.warn(message)

    @contextmanager
    def begin(self, number: int, point: Point) -> Iterator[Reporter]:
        """Show the progress of a trial."""
        self.draw(f"trial {number}: {describe_point(point)}")
        yield _Training(self, number)

    def refresh(self) -> None:
        """Tell of trials that have ended since the last time."""
        ended = [
            trial
            for trial in self._search.list_trials()
            if trial.state.is_finished() and trial.number not in self._told
        ]
        self._told |= {trial.number for trial in ended}
        if self._table.is_shown:
            self.draw(self._caption)
            return
        for trial in ended:
            headings, rows = build_table(self._search, [trial])
            cells = zip(headings[1:-1], rows[0][1:-1], strict=True)
            figures = ", ".join(f"{name} {value}" for name, value in cells if value != "")
            why = explain_end(trial)
            end = f"{rows[0][-1]}{f' ({why})' if why else ''}"
            left = describe_left(self._search, self._workers)
            console.note(f"trial    {trial.number} {end}: {figures}{left}")

    def draw(self, caption: str) -> None:
        """Draw the table with a line below, twice a second at most."""
        self._caption = caption
        now = time.monotonic()
        if not self._table.is_shown or now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        trials = self._search.list_trials()[-self._table.room :]
        left = describe_left(self._search, self._workers)
        self._table.show(*build_table(self._search, trials), f"{caption}{left}".lstrip("; "))


class _Training(Reporter):
    """One training of a search: what it does goes into the line below the table."""

    def __init__(self, screen: _Screen, number: int) -> None:
        self._screen = screen
        self._number = number

    def warn(self, message: str) -> None:
        """Print a warning."""
        console.warn(f"trial {self._number}: {message}")

    def on_step(self, progress: StepProgress) -> None:
        """Show how far the epoch is."""
        self._screen.draw(
            f"trial {self._number}: epoch {progress.epoch}/{progress.epochs}, "
            f"update {progress.step}/{progress.steps}"
        )

    def on_epoch(self, result: EpochResult) -> None:
        """Show that it has ended."""
        self._screen.draw(f"trial {self._number}: epoch {result.epoch}/{result.epochs}")


def _show(search: Search, choice: Choice, record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was found, with what may be believed of it."""
    folder = search.folder
    importance = compute_importance(search)
    front = list_front(search) if len(search.objectives) > 1 else []
    if front:
        plot_front(search, front)
    if as_json:
        more = {"importance": importance, "front": [trial.number for trial in front]}
        console.show_json({**record, **more, "best": str(folder.best)})
        return
    best = list_best(search)
    shown = build_table(search, best[:_SHOWN])
    console.show_table(*shown, title=f"the best of {count(len(best), 'trial')}", to_stderr=True)
    if front:
        title = f"Pareto front of {', '.join(search.objectives)} ({folder.front})"
        console.show_table(*build_table(search, front), title=title, to_stderr=True)
    if importance:
        parts = ", ".join(f"{key} {share:.0%}" for key, share in importance.items())
        console.note(f"importance  {parts}")
    name, values = search.figure, choice.values
    console.note(f"named    trial {choice.number}: {describe_point(choice.point)}")
    if len(values) > 1:
        seeds = ", ".join(f"{value:.4f}" for value in values)
        console.note(f"val      {name} {choice.mean:.4f}, mean of {len(values)} seeds ({seeds})")
    else:
        console.note(f"val      {name} {choice.mean:.4f}, one seed")
    if choice.noise is None or choice.optimism is None:
        console.warn("seeds were not compared, so nobody knows how much of this is luck")
    else:
        console.note(
            f"luck     the best of {choice.trials} equal trials would look {choice.optimism:.4f} "
            f"better than it is (noise between seeds {choice.noise:.4f})"
        )
        near = ", ".join(map(str, choice.within_noise))
        console.note(
            f"noise    of {count(choice.complete, 'trial')} that trained to the end, "
            f"{len(choice.within_noise)} are within noise of it ({near}), it among them; "
            f"the cheapest is trial {choice.cheapest}"
        )
    if test := record["test"]:
        console.note(
            f"test     {test['figure']} {test['value']:.2%} "
            f"(95% interval {test['low']:.2%} to {test['high']:.2%}) on {test['images']} images"
        )
        if len(record["tests"]) > 1:
            console.warn(
                f"{len(record['tests'])} models of this search were tested by now, so the figure "
                "is no longer that of an untouched test"
            )
    console.note(f"trials   {folder.table}")
    console.done(f"the best config is {folder.best}")
    console.note(f"next: mnft train {folder.best}, or mnft eval --ckpt {record['run']}")
    console.show_data(str(folder.best))
