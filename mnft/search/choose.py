"""An honest choice: further seeds for the best three, one named by its mean, tested once."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mnft import files
from mnft.config.source import Source, dump_yaml
from mnft.errors import first_line
from mnft.evaluation.checkpoint import open_checkpoint
from mnft.evaluation.images import load_image_set
from mnft.evaluation.outputs import compute_image_outputs
from mnft.reporter import Reporter
from mnft.search.points.checks import apply
from mnft.search.points.space import Point, describe_point
from mnft.search.study import Search
from mnft.search.worker import POLL_S, Display, free_memory, is_of_the_point, train_run
from mnft.tasks import open_task
from mnft.training.eval_batches import EvalOptions

_BEST = 3
_SIMULATIONS = 4_000
# Two means differ by less than so many standard errors 19 times of 20.
_NOISE = 1.96


@dataclass(frozen=True, slots=True)
class Choice:
    """What a search ends with.

    Attributes:
        number: number of the named trial.
        point: what it tried.
        values: the figure with each seed, that of the trial first.
        mean: mean of these.
        noise: standard deviation between seeds of one point; None if it was not measured.
        optimism: how much better the best of so many equal trials looks than it is; None without
            `noise`.
        trials: number of trials that were compared, those that rungs stopped among them.
        complete: number of trials that trained to their end.
        within_noise: numbers of the trials that are not worse than the named one beyond noise.
        cheapest: the one of these with the fewest multiply-accumulates.
    """

    number: int
    point: Point
    values: tuple[float, ...]
    mean: float
    noise: float | None
    optimism: float | None
    trials: int
    complete: int
    within_noise: tuple[int, ...]
    cheapest: int


def list_best(search: Search) -> list[FrozenTrial]:
    """The trials that trained to their end, the best one first."""
    complete = [
        trial
        for trial in search.list_trials()
        if trial.state is TrialState.COMPLETE and "same_as" not in trial.user_attrs
    ]
    sign = 1 if search.lower[0] else -1
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))


def train_seeds(search: Search, display: Display) -> None:
    """Train the best trials with further seeds; workers share them, and wait for one another.

    Raises:
        MnftError: a training failed for another reason than its point.
    """
    first = search.config.train.seed
    while True:
        missing = [
            (trial, seed)
            for seed in range(1, search.config.search.seeds + 1)
            for trial in list_best(search)[:_BEST]
            if _seed_name(trial.number, seed) not in _read_seeds(search)
        ]
        if not missing:
            return
        worked = False
        for trial, seed in missing:
            name = _seed_name(trial.number, seed)
            lock = search.folder.claim(name.replace(" ", "-"))
            if lock is None:
                continue
            try:
                if name not in _read_seeds(search):
                    worked = True
                    _train_seed(search, trial, first + seed, seed, display)
            finally:
                lock.release()
                free_memory()
        if not worked:
            time.sleep(POLL_S)


def _train_seed(
    search: Search, trial: FrozenTrial, train_seed: int, seed: int, display: Display
) -> None:
    point = search.space.decode(trial.params)
    display.note(f"seed     trial {trial.number} with train.seed {train_seed}")
    path = search.folder.trial(trial.number, seed)
    try:
        with display.begin(trial.number, point) as reporter:
            outcome = train_run(search, path, point, reporter, seed=train_seed)
        told: dict[str, Any] = asdict(outcome)
    except Exception as error:
        if not is_of_the_point(error):
            raise
        told = {"error": first_line(error)}
        display.warn(f"trial {trial.number} failed with train.seed {train_seed}: {told['error']}")
    search.note_study(_seed_name(trial.number, seed), told)


def _seed_name(number: int, seed: int) -> str:
    return f"trial {number} seed {seed}"


def _read_seeds(search: Search) -> Mapping[str, Any]:
    return search.read_study()


def choose(search: Search) -> Choice | None:
    """Name a trial by the mean over its seeds; None if no trial trained to its end."""
    best = list_best(search)
    if not best:
        return None
    told, sign = _read_seeds(search), -1 if search.lower[0] else 1
    runs: dict[int, list[float]] = {}
    for trial in best[:_BEST]:
        records = [
            told.get(_seed_name(trial.number, seed))
            for seed in range(1, search.config.search.seeds + 1)
        ]
        if all(record is None or "error" not in record for record in records):
            runs[trial.number] = [
                trial.values[0],
                *(record["figures"][search.figure] for record in records if record),
            ]
    if not runs:  # each of them failed with some seed
        runs[best[0].number] = [best[0].values[0]]
    number = max(runs, key=lambda n: (sign * statistics.fmean(runs[n]), -n))
    mean = statistics.fmean(runs[number])
    noise = pool_noise(list(runs.values()))
    margin = _NOISE * (noise or 0.0) * math.sqrt(1 + 1 / len(runs[number]))
    chosen = next(trial for trial in best if trial.number == number)
    # What a rung stopped was chosen against by luck too; what a limit kept out has no figures.
    compared = [
        trial
        for trial in search.list_trials()
        if trial.state in {TrialState.COMPLETE, TrialState.PRUNED}
        and "same_as" not in trial.user_attrs
        and trial.user_attrs.get("figures")
    ]
    near = [chosen]
    near += [t for t in best if t is not chosen and sign * (t.values[0] - mean) >= -margin]
    return Choice(
        number=number,
        point=search.space.decode(chosen.params),
        values=tuple(runs[number]),
        mean=mean,
        noise=noise,
        optimism=None if noise is None else noise * compute_optimism(len(compared)),
        trials=len(compared),
        complete=len(best),
        within_noise=tuple(sorted(trial.number for trial in near)),
        cheapest=min(near, key=lambda trial: trial.user_attrs["costs"]["macs_m"]).number,
    )


def pool_noise(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, pooled; None if no group has two values.

    Args:
        groups: figures of one point each, with different seeds.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    squares = sum((v - statistics.fmean(group)) ** 2 for group in groups for v in group)
    return math.sqrt(squares / freedom)


def compute_optimism(trials: int) -> float:
    """How far the best of so many equal trials lies above their mean, in standard deviations."""
    generator = random.Random(0)
    return statistics.fmean(
        max(generator.gauss(0, 1) for _ in range(trials)) for _ in range(_SIMULATIONS)
    )


def write_best(search: Search, source: Source, choice: Choice) -> None:
    """Write the config of the named trial; `mnft train` on it gives that model again."""
    values = apply(source, choice.point).values
    kept = {key: value for key, value in values.items() if key != "search"}
    head = [
        f"# Trial {choice.number} of the search {search.folder.path.name}: "
        f"{describe_point(choice.point)}",
        f"# val {search.figure}, mean of {len(choice.values)} seeds: {choice.mean:.4f}",
    ]
    files.write_text(search.folder.best, "\n".join([*head, dump_yaml(kept)]))


def run_test(search: Search, choice: Choice, reporter: Reporter) -> dict[str, Any] | None:
    """Evaluate the named model on the test split; None if there is no such split.

    What result.json has of this trial is taken from there: the test is looked at once.
    """
    result = search.folder.result
    if result.is_file():
        before = json.loads(result.read_text(encoding="utf-8"))
        if before["trial"] == choice.number and before["test"]:
            return dict(before["test"])
    run = search.folder.trial(choice.number)
    if not run.exists():
        host = search.read(choice.number).user_attrs["worker"].split()[0]
        reporter.warn(f"trial {choice.number} is on {host}: the same command there tests it")
        return None
    opened = open_checkpoint(run)
    if opened.manifest is None or "test" not in opened.manifest.splits:
        return None
    bundle = opened.bundle
    outputs = compute_image_outputs(
        bundle,
        load_image_set(opened, None, "test", reporter),
        search.config.eval,
        device=search.config.train.device,
        options=EvalOptions(None, None),
        reporter=reporter,
        flip=False,
    )
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    evaluation = task.evaluate(outputs)
    return {
        "figure": task.figure,
        "images": evaluation.num_images,
        **asdict(evaluation.rate),
        "all": evaluation.as_columns(),
    }


def write_result(search: Search, choice: Choice, test: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write result.json; gives what it holds."""
    result = search.folder.result
    tests = {}
    if result.is_file():
        tests = json.loads(result.read_text(encoding="utf-8"))["tests"]
    if test is not None:
        tests[str(choice.number)] = test["value"]
    record = {
        "search": search.folder.path.name,
        "trial": choice.number,
        "run": str(search.folder.trial(choice.number)),
        "tried": dict(choice.point),
        "figure": f"val_{search.figure}",
        "first": choice.values[0],
        "seeds": list(choice.values[1:]),
        "mean": choice.mean,
        "noise": choice.noise,
        "optimism": choice.optimism,
        "trials": choice.trials,
        "complete": choice.complete,
        "within_noise": list(choice.within_noise),
        "cheapest": choice.cheapest,
        "test": dict(test) if test else None,
        "tests": tests,
    }
    files.write_json(result, record)
    return record
