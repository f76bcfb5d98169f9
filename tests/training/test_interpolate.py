"""Weights between those of the fitted head and the fine-tuned ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.training import Trainer, assert_equal, assert_same_run, log_of
from torch import Tensor

from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.device.machine import Machine
from mnft.reporter import SILENT
from mnft.runs.begin import begin_training
from mnft.training import interpolate as module
from mnft.training import stages
from mnft.training.fit import judge

STAGES = "train.stages=[head, finetune, interpolate]"


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def result_of(run: Path) -> dict[str, Any]:
    return [line for line in log_of(run) if line["event"] == "interpolate"][-1]


def test_it_is_linear_and_counters_are_those_of_the_end() -> None:
    begin = {"a": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    end = {"a": torch.tensor([4.0, 0.0]), "n": torch.tensor(9)}
    mixed = module.mix(begin, end, 0.25)
    assert mixed["a"].tolist() == [1.0, 1.5]
    assert mixed["n"].item() == 9


def test_the_best_model_is_the_one_with_the_smallest_val_loss(train: Trainer) -> None:
    assert train("train.stages=[head]", name="head").exit_code == 0
    result = train(STAGES, "train.epochs=3", name="all")
    assert result.exit_code == 0, result.stderr
    run = train.run("all")
    begin, end = weights_of(train.run("head") / "best"), weights_of(run / "last")
    config, _ = load_config(run / "config.yaml")
    _, training = begin_training(config, None, Machine(torch.device("cpu")), SILENT)
    losses = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        training.state.model.load_state_dict(module.mix(begin, end, share))
        judged = judge(training.state.model, training.val, training.options.loop)
        losses[share] = judged.fitted_loss
        temperature = judged.settings.get("decision", {}).get("temperature", 1.0)
        assert judged.fitted_loss <= judged.figures["loss"] or temperature == 1
    told = result_of(run)
    assert told["share"] == min(losses, key=lambda share: losses[share])
    assert_equal(weights_of(run / "best"), module.mix(begin, end, told["share"]))
    assert f"{told['share']:.0%} tuned" in result.stderr
    assert f"{told['share']:.0%} fine-tuned" in result.stderr


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_either_end_may_be_the_best(
    share: float, train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("train.stages=[head]", name="head").exit_code == 0
    losses = iter([abs(share - other) for other in (0.0, 0.25, 0.5, 0.75, 1.0)])
    monkeypatch.setattr(
        module, "judge", lambda *args: judge(*args)._replace(fitted_loss=next(losses))
    )
    assert train(STAGES, name="run").exit_code == 0
    run = train.run("run")
    assert result_of(run)["share"] == share
    end = run / "last" if share == 1.0 else train.run("head") / "best"
    assert_equal(weights_of(run / "best"), weights_of(end))


def test_a_run_killed_before_it_resumes_to_the_same_bits(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(STAGES, name="whole").exit_code == 0

    class Killed(BaseException):
        """Stands for SIGKILL: nothing catches it."""

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(stages, "interpolate", kill)
    with pytest.raises(Killed):
        train(STAGES, name="cut")
    monkeypatch.setattr(stages, "interpolate", module.interpolate)
    assert train.resume("cut").exit_code == 0
    assert_same_run(train.run("whole"), train.run("cut"))
    assert result_of(train.run("cut"))["share"] == result_of(train.run("whole"))["share"]


def test_a_run_that_is_extended_interpolates_again(train: Trainer) -> None:
    assert train(STAGES, "train.epochs=1", name="run").exit_code == 0
    assert result_of(train.run("run"))["epoch"] == 1
    assert train.resume("run", "train.epochs=2").exit_code == 0
    assert result_of(train.run("run"))["epoch"] == 2
    before = weights_of(train.run("run") / "best")
    assert train.resume("run").exit_code == 0  # there is nothing left to do
    assert_equal(weights_of(train.run("run") / "best"), before)


def test_it_needs_both_ends() -> None:
    with pytest.raises(ValueError, match=r"expected \[head\], \[finetune\], \[head, finetune\] or"):
        Config.model_validate(
            {"data": {"root": "."}, "train": {"stages": ["finetune", "interpolate"]}}
        )
