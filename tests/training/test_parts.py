"""Into how many parts a batch is cut on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import Trainer, log_of
from torch import nn

from mnft.config.load import load_config
from mnft.config.recipe import Choice
from mnft.config.schema import Config
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import Ranks
from mnft.model.factory import BuiltModel, build_model
from mnft.training import batch_size as module
from mnft.training.batch_size import choose_parts, count_kept_bytes, resolve_batch_size

CPU = torch.device("cpu")


def build(**sections: dict[str, Any]) -> tuple[Config, BuiltModel]:
    values: dict[str, dict[str, Any]] = {
        "data": {"root": "images"},
        "model": {"name": "mobilenetv2_100", "pretrained": False, "freeze_batchnorm": True},
        "train": {"precision": "fp32"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    config = Config.model_validate(values)
    return config, build_model(
        config.model,
        num_classes=5,
        labels=tuple("abcde"),
        img_size=config.data.img_size,
        overrides={},
    )


def resolve(
    config: Config,
    built: BuiltModel,
    device: torch.device = CPU,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> tuple[Config, list[Choice]]:
    machine = Machine(device, ranks)
    if device == CPU:
        machine = machine.with_precision(config.train.precision, "fp32", img_size=224)
    return resolve_batch_size(config, built, machine, wanted=config.train.batch_size)


@pytest.mark.parametrize(
    ("train_section", "model", "ranks", "steps"),
    [
        ({"batch_size": 32}, {}, Ranks(), 1),
        ({"batch_size": 64}, {}, Ranks(), 2),
        ({"batch_size": 64}, {}, Ranks(0, 2), 1),
        ({"batch_size": 64, "precision": "bf16"}, {}, Ranks(), 1),
        ({"batch_size": 128, "precision": "bf16"}, {}, Ranks(), 2),
        ({"batch_size": 64, "accumulation_steps": 1}, {}, Ranks(), 1),
        # BatchNorm would learn its statistics from the parts.
        ({"batch_size": 64}, {"freeze_batchnorm": False}, Ranks(), 1),
        # Nothing is kept of a backbone that does not learn.
        ({"batch_size": 64}, {"freeze": "backbone", "freeze_batchnorm": False}, Ranks(), 1),
    ],
)
def test_a_batch_keeps_at_most_three_gigabytes(
    train_section: dict[str, Any], model: dict[str, Any], ranks: Ranks, steps: int
) -> None:
    config, built = build(train=train_section, model=model)
    before = copy.deepcopy(built.model.state_dict())
    state = torch.get_rng_state()
    resolved, choices = resolve(config, built, ranks=ranks)
    assert resolved.train.accumulation_steps == steps
    assert [choice.key for choice in choices] == ["train.accumulation_steps"] * (steps > 1)
    assert resolved.model_copy(update={"train": config.train}) == config
    # Only a copy was tried.
    after = built.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in built.model.parameters())


def test_a_gpu_and_small_images_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "count_kept_bytes", None)
    config, built = build(train={"batch_size": 64})
    resolved, _ = resolve(config, built, torch.device("meta"))
    assert resolved.train.accumulation_steps == 1
    config, built = build(train={"batch_size": 64}, data={"img_size": 64})
    assert resolve(config, built)[0].train.accumulation_steps == 1


def test_what_is_kept_of_an_image() -> None:
    # Of 8 x 8 images the convolution keeps its input (3 x 64 values), ReLU its output (4 x 64).
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    assert count_kept_bytes(model, (3, 8, 8)) == 4 * 64 * (3 + 4)


def test_parts_are_as_large_as_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 10.0)
    model = nn.Linear(1, 1)
    found = [choose_parts(model, images, 3.0, CPU) for images in (1, 3, 4, 6, 7, 9, 10)]
    assert found == [1, 1, 2, 2, 3, 3, 4]
    assert choose_parts(model, 4, 11.0, CPU) == 4  # a single image is over the limit
    assert choose_parts(model, 4, 0.0, CPU) == 1


def test_a_run_keeps_its_number_of_parts(
    train: Trainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MANY_PIXELS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_KEPT_BYTES", 4 * 60_000)
        result = train(name="cut")
        assert result.exit_code == 0
        assert "recipe   train.accumulation_steps: " in result.stderr
    run: Path = train.run("cut")
    written = load_config(run / "config.yaml")[0].train.accumulation_steps
    assert isinstance(written, int)
    assert written > 1
    assert log_of(run)[0]["recipe"]["train.accumulation_steps"] == written
    assert train.resume("cut", "train.epochs=3").exit_code == 0  # where the limit is another one
    assert load_config(run / "config.yaml")[0].train.accumulation_steps == written
