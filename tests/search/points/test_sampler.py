"""The points of trials: a function of the seed and the trial's number, and none of them twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from mnft.search.points.sampler import Points, build_distribution, build_sampler
from mnft.search.points.space import Dimension, Space

NAMES = Dimension("model.name", "", ("lenet5", "mobilenetv2_035", "mobilenetv2_050"))
MIXUP = Dimension("augment.mixup", "", (0, 0.1, 0.2, 0.3))
LR = Dimension("optim.lr", "", None, 1e-4, 1e-2, log=True)
GRID = Space((NAMES, MIXUP))


def texts(points: list[dict[str, object]]) -> list[str]:
    return [str(point) for point in points]


@pytest.mark.parametrize("method", ["grid", "random"])
def test_all_points_of_a_finite_space_come_once(method):
    points = Points(GRID, method, seed=0)
    found = texts([points.point(number) for number in range(12)])
    assert len(set(found)) == 12 == GRID.size


@pytest.mark.parametrize("method", ["grid", "random"])
@pytest.mark.parametrize("space", [GRID, Space((NAMES, MIXUP, LR))])
def test_a_point_depends_on_its_number_only(method, space):
    if method == "grid" and space.size is None:
        return
    forward, backward = Points(space, method, 7), Points(space, method, 7)
    numbers = range(12)
    expected = {number: forward.point(number) for number in numbers}
    assert {number: backward.point(number) for number in reversed(numbers)} == expected
    other = Points(space, method, 8)
    assert [other.point(n) for n in numbers] != [expected[n] for n in numbers]


def test_a_grid_that_is_cut_short_has_tried_several_values_of_each_key():
    points = Points(GRID, "grid", seed=0)
    first = [points.point(number) for number in range(5)]
    assert len({point["model.name"] for point in first}) > 1


@pytest.mark.parametrize("method", ["grid", "random"])
def test_four_workers_try_what_one_does(method, tmp_path):
    """Where Optuna's own samplers repeat points: O#2039, O#4627."""

    def search(workers: int) -> dict[int, dict[str, object]]:
        from mnft.search.storage import open_journal

        path = tmp_path / f"{workers}.log"
        optuna.create_study(storage=open_journal(path), study_name="s")

        def work(_: int) -> None:
            study = optuna.load_study(
                storage=open_journal(path),
                study_name="s",
                sampler=build_sampler(method, GRID, Points(GRID, method, 0), seed=0, trials=12),
            )
            for _ in range(12 // workers):
                distributions = {d.key: build_distribution(d) for d in GRID.dimensions}
                study.tell(study.ask(distributions), 0.0)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        study = optuna.load_study(storage=open_journal(path), study_name="s")
        return {trial.number: GRID.decode(trial.params) for trial in study.trials}

    one, four = search(1), search(4)
    assert one == four
    assert len(set(texts(list(four.values())))) == 12


@pytest.mark.parametrize("method", ["tpe", "gp", "nsga2"])
def test_samplers_of_optuna_are_built_without_a_word(method):
    sampler = build_sampler(method, GRID, None, seed=2**40, trials=20)
    study = optuna.create_study(sampler=sampler)
    for _ in range(3):
        study.tell(study.ask({d.key: build_distribution(d) for d in GRID.dimensions}), 1.0)
    assert len(study.trials) == 3
