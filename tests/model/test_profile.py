"""Profiles: known costs, the count itself, names that do not exist, no side effects."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mnft.errors import ModelError
from mnft.model.profile import compute_macs, list_profiles, profile_model


@pytest.mark.parametrize(
    ("name", "params_m", "macs_m"),
    [
        ("mobilenetv1_100", 4.2, 569),
        ("mobilenetv2_100", 3.5, 301),
        ("mobilenetv3_large_100", 5.5, 217),
        ("mobilenetv4_conv_small", 3.8, 186),
    ],
)
def test_known_costs(name: str, params_m: float, macs_m: int) -> None:
    profile = profile_model(name)
    assert profile.input_size == (3, 224, 224)
    assert round(profile.params / 1e6, 1) == params_m
    assert round(profile.macs / 1e6) == macs_m


def test_macs_of_a_network_counted_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 16 * 16 * 8 * 27
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 16 * 16 * 8 * 9
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 5),  # 2048 * 5
    )
    assert compute_macs(model, (3, 32, 32)) == 55296 + 18432 + 10240


def test_macs_of_lenet5_counted_by_hand() -> None:
    macs = 28 * 28 * 6 * 75 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert profile_model("lenet5").macs == macs


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit", "test_vit3"])
def test_meta_counts_as_the_processor_does(name: str) -> None:
    # test_vit3 gives a parameter to a module, as CaiT does: the counter must not stumble.
    size = timm.create_model(name).pretrained_cfg["input_size"]
    assert profile_model(name).macs == compute_macs(timm.create_model(name), size) > 0


def test_compute_macs_gives_the_model_back_as_it_came() -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=2).train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compute_macs(model, (3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())


def test_size_and_classes_can_be_chosen() -> None:
    own, small = profile_model("mobilenetv2_035"), profile_model("mobilenetv2_035", img_size=96)
    assert small.input_size == (3, 96, 96)
    assert small.macs < own.macs / 4.5
    assert own.params - profile_model("mobilenetv2_035", num_classes=5).params == 1281 * 995


def test_a_model_of_fixed_size_is_built_for_the_size() -> None:
    profile = profile_model("lenet5", img_size=64)
    assert profile.input_size == (3, 64, 64)
    assert profile.params == 456 + 2416 + (16 * 13 * 13 + 1) * 120 + 10164 + 850


def test_pretrained_says_whether_timm_has_weights() -> None:
    assert profile_model("mobilenetv2_100").pretrained
    assert profile_model("mobilenetv2_100.ra_in1k").pretrained
    assert not profile_model("mobilenetv2_035").pretrained
    assert not profile_model("mobilenetv1_050").pretrained


def test_random_state_and_output_are_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    profile_model("mobilenetv2_035")
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_be_built_on_meta_is_measured_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = profile_model("lenet5")
    create, built_on = timm.create_model, []

    def create_on_processor(name: str, **kwargs: object) -> nn.Module:
        model = create(name, **kwargs)
        built_on.append(next(model.parameters()).device.type)
        if built_on[-1] == "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return model

    monkeypatch.setattr(timm, "create_model", create_on_processor)
    state = torch.get_rng_state()
    assert profile_model("lenet5") == expected
    assert built_on == ["meta", "cpu"]
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_name_has_a_suggestion() -> None:
    with pytest.raises(ModelError, match="mobilnetv2_100") as caught:
        profile_model("mobilnetv2_100")
    assert caught.value.hint is not None
    assert "mobilenetv2_100" in caught.value.hint


def test_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(ModelError, match="tag") as caught:
        profile_model("mobilenetv2_100.nothing")
    assert caught.value.hint is not None
    assert "mobilenetv2_100.ra_in1k" in caught.value.hint


def test_impossible_size_is_an_error_with_a_hint() -> None:
    with pytest.raises(ModelError, match="8x8"):
        profile_model("lenet5", img_size=8)
    with pytest.raises(ModelError, match="32x32") as caught:
        profile_model("inception_v3", img_size=32)
    assert caught.value.hint is not None
    assert "299x299" in caught.value.hint


def test_list_profiles_filters_by_pattern() -> None:
    profiles = list_profiles("mobilenetv1_0*", img_size=64, num_classes=2)
    found = [(profile.name, profile.input_size) for profile in profiles]
    assert found == [(f"mobilenetv1_{w}", (3, 64, 64)) for w in ("025", "050", "075")]


def test_list_profiles_without_a_pattern_is_the_mobilenets_and_lenet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mnft.model.profile.profile_model", lambda name, **_: name)
    names = list(list_profiles())
    assert {"lenet5", "mobilenetv1_025", "mobilenetv2_130", "mobilenetv3_large_100"} < set(names)
    assert "mobilenetv4_hybrid_large" in names
    assert not any(name.startswith(("mobilenetv5", "tf_", "resnet")) for name in names)


def test_a_pattern_that_matches_nothing_is_an_error_at_once() -> None:
    with pytest.raises(ModelError, match="nosuchnet"):
        list_profiles("nosuchnet*")
