"""A search under way: its study in the storage, which trial comes next, and what is told of it."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mnft import files
from mnft.config.schema import Config
from mnft.config.source import Source, dump_yaml
from mnft.errors import ConfigError
from mnft.runs.lock import RunLock
from mnft.search.folder import SearchFolder
from mnft.search.identity import check_same, identify
from mnft.search.points.sampler import Points, build_distribution, build_sampler
from mnft.search.points.space import Point, Space
from mnft.search.storage import explaining, open_journal, open_storage, silence
from mnft.seeding import derive_seed
from mnft.tasks import open_task

RANDOM_TRIALS = 30
_IDENTITY = "mnft"  # the attribute that tells what a study is of


@dataclass(frozen=True, slots=True)
class Job:
    """A trial that this process is to train.

    Attributes:
        number: number of the trial.
        point: what it tries.
        lock: the claim on it, which ends with the process.
        again: whether another process, which is gone, began it.
        asked: the trial in Optuna's words.
    """

    number: int
    point: Point
    lock: RunLock
    again: bool
    asked: optuna.trial.Trial


@dataclass(frozen=True, slots=True)
class Search:
    """A search, as one of its processes sees it.

    Attributes:
        folder: where its files are.
        config: the config as it was loaded.
        space: what is tried.
        study: the study in the storage.
        storage: URL of the storage, or path of the journal.
        objectives: what is optimised: a figure of the val split, then costs.
        lower: for each objective, whether lower is better.
        total: number of trials; None for no limit.
        deadline: the monotonic time after which no trial begins, or None.
        points: points of grid and random; None for other methods.
        id: name of the folder in the storage.
    """

    folder: SearchFolder
    config: Config
    space: Space
    study: optuna.Study
    storage: str
    objectives: tuple[str, ...]
    lower: tuple[bool, ...]
    total: int | None
    deadline: float | None
    points: Points | None
    id: str

    def close(self) -> None:
        """Close the connections to a database."""
        storage = self.study._storage
        storage.remove_session()
        if (backend := getattr(storage, "_backend", None)) and hasattr(backend, "engine"):
            backend.engine.dispose()

    @property
    def figure(self) -> str:
        """The figure of the val split that chooses."""
        return self.objectives[0]

    def list_trials(self) -> list[FrozenTrial]:
        """All trials, by number; what another machine began too late is left out."""
        with explaining(self.storage):
            trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if self.total is None or trial.number < self.total]

    def read(self, number: int) -> FrozenTrial:
        """The newest state of a trial."""
        with explaining(self.storage):
            return self.study.get_trials(deepcopy=False)[number]

    def note(self, number: int, **values: Any) -> None:
        """Keep facts of a trial in the storage."""
        storage = self.study._storage  # the public way needs a Trial, which draws a point
        with explaining(self.storage):
            trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
            for name, value in values.items():
                storage.set_trial_user_attr(trial_id, name, value)

    def constrain(self, job: Job, excess: Mapping[str, float]) -> None:
        """Tell how far a trial is above each limit, for samplers that learn from it."""
        with explaining(self.storage), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told before by a process that is gone
            for name, value in excess.items():
                job.asked.set_constraint(name, value)

    def report(self, job: Job, epoch: int, value: float) -> None:
        """Tell the figure after an epoch, for samplers and the dashboard.

        Optuna takes none of a search with several objectives.
        """
        if len(self.objectives) == 1:
            with explaining(self.storage), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told before by a process that is gone
                job.asked.report(value, epoch)

    def read_study(self) -> Mapping[str, Any]:
        """The facts that belong to no single trial."""
        with explaining(self.storage):
            return self.study.user_attrs

    def note_study(self, name: str, value: Any) -> None:
        """Keep such a fact in the storage."""
        with explaining(self.storage):
            self.study.set_user_attr(name, value)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial; one that has ended stays as it is."""
        with explaining(self.storage):
            self.study.tell(number, values, state=state, skip_if_finished=True)


def open_search(config: Config, source: Source, space: Space, folder: SearchFolder) -> Search:
    """Open the study of a search, or begin one.

    Args:
        config: the config.
        source: the values as they were written.
        space: what is tried.
        folder: the folder of the search.

    Raises:
        ConfigError: the storage cannot be opened, or holds another search of this name.
    """
    silence()
    settings = config.search
    objectives = tuple(settings.objectives or (config.eval.monitor,))
    monitors = open_task(("a", "b"), config.task, config=config).monitors
    if objectives[0] not in monitors:
        raise ConfigError(
            f"found {objectives[0]}, expected one of {', '.join(monitors)} first",
            key="search.objectives",
        )
    lower = (monitors[objectives[0]] is min, *(True for _ in objectives[1:]))
    place = settings.storage or str(folder.journal)
    with folder.waiting("begin"):
        storage = open_storage(place) if settings.storage else open_journal(folder.journal)
        with explaining(place):
            study = optuna.create_study(
                storage=storage,
                study_name=folder.path.name,
                directions=["minimize" if low else "maximize" for low in lower],
                load_if_exists=True,
            )
            known = study.user_attrs.get(_IDENTITY)
        identity = identify(config, source, space, objectives)
        if known is None:
            with explaining(place):
                study.set_user_attr(_IDENTITY, identity)
        else:
            check_same(known, identity, place)
        values = {key: value for key, value in source.values.items() if key != "search"}
        files.write_text(folder.base, dump_yaml(values))
    points = None
    if settings.method in {"grid", "random"}:
        points = Points(space, settings.method, settings.seed)
    return Search(
        folder=folder,
        config=config,
        space=space,
        study=study,
        storage=place,
        objectives=objectives,
        lower=lower,
        total=_count_trials(config, space),
        deadline=None if settings.minutes is None else time.monotonic() + 60 * settings.minutes,
        points=points,
        id=folder.read_id(),
    )


def _count_trials(config: Config, space: Space) -> int | None:
    settings, total = config.search, config.search.trials
    if total is None and settings.method != "grid" and settings.minutes is None:
        total = RANDOM_TRIALS
    # No point twice, so there are no more of them; Optuna's samplers may repeat one.
    if settings.method in {"grid", "random"} and space.size is not None:
        total = space.size if total is None else min(total, space.size)
    return total


def take(search: Search) -> Job | None:
    """Take the next trial: one whose process is gone, else a new one; None if there is none."""
    with search.folder.waiting("ask"):
        for trial in search.list_trials():
            if trial.state is not TrialState.RUNNING or trial.user_attrs["folder"] != search.id:
                continue
            lock = search.folder.claim(_name(trial.number))
            if lock is None:
                continue
            if search.read(trial.number).state is TrialState.RUNNING:
                return _make_job(search, trial, lock, again=True)
            lock.release()
        begun = len(search.list_trials())
        if search.total is not None and begun >= search.total:
            return None
        if search.deadline is not None and time.monotonic() > search.deadline:
            return None
        trial = _create_trial(search)
        lock = search.folder.claim(_name(trial.number))
        assert lock is not None
        if search.total is not None and trial.number >= search.total:
            # Another machine, which has a folder of its own, was faster.
            search.tell(trial.number, TrialState.FAIL)
            lock.release()
            return None
        return _make_job(search, trial, lock, again=False)


def find_twin(search: Search, job: Job) -> FrozenTrial | None:
    """The trial that trained the same point before; Optuna's samplers repeat points."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    point = search.space.encode(job.point)
    for trial in search.list_trials():
        is_own = trial.number == job.number or "same_as" in trial.user_attrs
        if trial.state in ended and not is_own and trial.params == point:
            return trial
    return None


def is_waiting(search: Search) -> bool:
    """Whether other processes still train trials of this folder."""
    return any(
        trial.state is TrialState.RUNNING and trial.user_attrs["folder"] == search.id
        for trial in search.list_trials()
    )


def _name(number: int) -> str:
    return f"trial-{number:04d}"


def _create_trial(search: Search) -> FrozenTrial:
    """Create a trial that says from its first moment which folder it belongs to.

    `study.ask` would create it and then say so: a process that is killed in between would leave a
    trial that runs for ever.
    """
    template = create_trial(
        state=TrialState.RUNNING,
        user_attrs={"folder": search.id, "worker": f"{socket.gethostname()} {os.getpid()}"},
    )
    storage = search.study._storage
    with explaining(search.storage):
        number = storage.create_new_trial(search.study._study_id, template_trial=template)
        return storage.get_trial(number)


def _make_job(search: Search, trial: FrozenTrial, lock: RunLock, *, again: bool) -> Job:
    """Draw the point of a trial; values that it has already stay."""
    search.study.sampler = build_sampler(
        search.config.search.method,
        search.space,
        search.points,
        seed=derive_seed(search.config.search.seed, trial.number),
        trials=search.total,
    )
    with explaining(search.storage):
        asked = optuna.trial.Trial(search.study, trial._trial_id)
        params: dict[str, Any] = {}
        for dimension in search.space.dimensions:
            key, kind = dimension.key, build_distribution(dimension)
            if isinstance(kind, CategoricalDistribution):
                params[key] = asked.suggest_categorical(key, kind.choices)
            elif isinstance(kind, IntDistribution):
                params[key] = asked.suggest_int(key, kind.low, kind.high, log=kind.log)
            elif isinstance(kind, FloatDistribution):
                params[key] = asked.suggest_float(key, kind.low, kind.high, log=kind.log)
    return Job(trial.number, search.space.decode(params), lock, again, asked)
