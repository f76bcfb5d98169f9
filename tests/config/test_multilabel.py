"""The config of several labels an image: its monitor, its section, and what the recipe leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from mnft.config.evaluation import MONITORS, EvalConfig
from mnft.config.load import load_config, save_config
from mnft.config.recipe import apply_recipe
from mnft.config.schema import Config
from mnft.errors import ConfigError
from mnft.tasks import TASKS, open_task


def load(tmp_path: Path, **sections: Any) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"root": "x"}, **sections}))
    return load_config(path)[0]


def test_each_task_has_its_monitors() -> None:
    assert set(MONITORS) == set(TASKS)
    for task in TASKS:
        assert set(MONITORS[task]) == set(open_task(("a", "b"), task).monitors)
        assert MONITORS[task][0] == open_task(("a", "b"), task).figure
    known = get_args(EvalConfig.model_fields["monitor"].annotation)
    assert set(known) == {name for names in MONITORS.values() for name in names}


@pytest.mark.parametrize("section", [{}, {"eval": None}, {"eval": {"batch_size": 4}}])
def test_the_default_follows_the_task(tmp_path: Path, section: dict[str, Any]) -> None:
    assert load(tmp_path, **section).eval.monitor == "accuracy"
    found = load(tmp_path, task="multilabel", **section)
    assert found.eval.monitor == "map"
    assert found.eval.batch_size == (section.get("eval") or {}).get("batch_size", "auto")
    written = load(tmp_path, task="multilabel", eval={"monitor": "micro_f1"})
    assert written.eval.monitor == "micro_f1"
    data = {"data": {"root": "x"}, "task": "multilabel"}
    assert Config.model_validate({**data, "eval": EvalConfig(batch_size=2)}).eval.monitor == "map"


@pytest.mark.parametrize(
    ("task", "monitor"), [("classify", "map"), ("multilabel", "accuracy"), ("classify", "micro_f1")]
)
def test_a_monitor_of_another_task_is_refused(tmp_path: Path, task: str, monitor: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, task=task, eval={"monitor": monitor})
    expected = f"found {monitor}, expected one of {', '.join(MONITORS[task])} with task: {task}"
    assert expected in caught.value.message
    assert "line 4: eval.monitor" in caught.value.message


def test_the_section_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected task: multilabel"):
        load(tmp_path, multilabel={"loss": "asymmetric"})
    assert load(tmp_path, multilabel={}) == load(tmp_path)


def test_the_saved_config_of_a_classifier_says_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "saved.yaml"
    config = load(tmp_path)
    save_config(config, path)
    assert "multilabel" not in path.read_text()
    assert "multilabel" not in config.model_dump()
    own = load(tmp_path, task="multilabel", multilabel={"gamma_neg": 2.0})
    save_config(own, path)
    assert load_config(path)[0] == own
    assert own.model_dump()["multilabel"]["gamma_neg"] == 2.0


def test_the_recipe_does_not_smooth_labels_of_their_own(tmp_path: Path) -> None:
    def choose(task: str) -> dict[str, Any]:
        config = load(tmp_path, task=task)
        _, choices = apply_recipe(config, num_images=1600, linear_head=True)
        return {choice.key: choice.value for choice in choices}

    classify, multilabel = choose("classify"), choose("multilabel")
    assert classify.pop("train.label_smoothing") == 0.1
    assert multilabel == classify
