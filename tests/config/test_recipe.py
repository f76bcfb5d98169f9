"""The recipe: what it chooses, that what is written wins, and that a saved config repeats it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnft.config.recipe import apply_recipe, choose_batch_size
from mnft.config.schema import Config

PRETRAINED = {"data": {"root": "x"}}


def resolve(values=None, *, num_images=1600, linear_head=True, **sections):
    config = Config.model_validate({**PRETRAINED, **(values or {}), **sections})
    return apply_recipe(config, num_images=num_images, linear_head=linear_head)


def test_auto_chooses_and_says_why():
    config, choices = resolve()
    assert config.train.stages == ["head", "finetune"]
    assert config.optim.name == "adamw"
    assert config.optim.layer_decay
    assert config.schedule.name == "cosine"
    assert config.train.ema_decay
    for choice in choices:
        section, key = choice.key.split(".")
        assert getattr(getattr(config, section), key) == choice.value
        assert choice.reason


def test_what_is_written_wins():
    written = {
        "train": {"epochs": 3, "stages": ["finetune"], "ema_decay": None, "label_smoothing": 0.0},
        "optim": {"lr": 0.5, "layer_decay": None},
        "schedule": {"name": "step"},
    }
    config, choices = resolve(written)
    for section, values in written.items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value
            assert f"{section}.{key}" not in {choice.key for choice in choices}
    assert config.optim.name == "adamw"


@pytest.mark.parametrize(
    "sections", [{"recipe": "plain"}, {"model": {"pretrained": False}}], ids=["plain", "random"]
)
def test_plain_and_random_weights_keep_the_defaults(sections):
    config, choices = resolve(sections)
    assert choices == []
    expected = Config.model_validate({**PRETRAINED, **sections}).model_dump()
    expected["train"]["stages"] = ["finetune"]
    assert config.model_dump() == expected
    assert (config.optim.name, config.optim.lr, config.schedule.name) == ("adam", 1e-3, "none")


def test_a_resolved_config_is_not_changed_again():
    config, _ = resolve()
    again, choices = apply_recipe(
        Config.model_validate(config.model_dump()),
        num_images=50,
        linear_head=False,
    )
    assert choices == []
    assert again == config


def test_a_frozen_backbone_needs_the_head_stage_only():
    config, _ = resolve(model={"freeze": "backbone"})
    assert config.train.stages == ["head"]
    config, _ = resolve(model={"freeze": "backbone"}, train={"epochs": 10})
    assert config.train.stages == ["finetune"]
    config, _ = resolve(model={"freeze": "backbone"}, train={"epochs": 10, "stages": ["head"]})
    assert config.train.stages == ["head"]


def test_a_head_that_cannot_be_fitted_alone_is_not():
    config, choices = resolve(linear_head=False)
    assert config.train.stages == ["finetune"]
    assert any("cannot be fitted" in choice.reason for choice in choices)


def test_another_optimizer_keeps_its_own_rates():
    config, choices = resolve(optim={"name": "sgd"})
    assert (config.optim.lr, config.optim.layer_decay) == (1e-3, None)
    assert not [choice for choice in choices if choice.key.startswith("optim.")]


def test_fewer_images_get_more_passes_lower_rates_and_smaller_batches():
    found = [resolve(num_images=n)[0] for n in (20, 100, 300, 1600, 50_000)]
    passes = [config.train.epochs * config.train.passes for config in found]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1] >= 1
    for config, num_images in zip(found, (20, 100, 300), strict=False):
        assert 300 <= config.train.passes * num_images < 2 * 300
    assert [config.optim.lr for config in found] == [1e-4, 3e-4, 5e-4, 1e-3, 1e-3]
    assert [len(config.train.stages) for config in found] == [3, 3, 3, 2, 2]
    sizes = [choose_batch_size(n) for n in (1, 100, 1600, 10_000, 10**6)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 256)


def test_written_epochs_are_passes():
    config, choices = resolve(num_images=20, train={"epochs": 4})
    assert (config.train.epochs, config.train.passes) == (4, 1)
    assert "train.passes" not in {choice.key for choice in choices}


def test_automatic_batch_size_is_a_number_afterwards():
    config, _ = resolve(train={"batch_size": "auto"}, num_images=10_000)
    assert config.train.batch_size == choose_batch_size(10_000)


@given(
    st.integers(1, 10**7),
    st.booleans(),
    st.integers(1, 50) | st.none(),
    st.sampled_from(["none", "backbone", 1]),
)
def test_every_data_set_gets_a_valid_config(num_images, linear_head, epochs, freeze):
    train = {} if epochs is None else {"epochs": epochs}
    config, _ = resolve(
        num_images=num_images,
        linear_head=linear_head,
        train=train,
        model={"freeze": freeze},
    )
    assert config.train.stages
    assert config.schedule.warmup_epochs < config.train.epochs
