"""MobileNet widths that timm lacks: the papers' numbers, timm's interface, registration."""

from __future__ import annotations

import importlib
import warnings

import pytest
import timm
import torch
from timm.models import model_entrypoint

from mnft.model import widths
from mnft.model.profile import profile_model


@pytest.mark.parametrize(
    ("name", "params_m", "macs_m"),
    [
        # Howard et al. 2017, Table 6
        ("mobilenetv1_025", 0.5, 41),
        ("mobilenetv1_050", 1.3, 149),
        ("mobilenetv1_075", 2.6, 325),
        ("mobilenetv1_100", 4.2, 569),
        # the table that the authors published with their weights (parameters: without BatchNorm's)
        ("mobilenetv2_130", 5.4, 509),
        ("mobilenetv2_140", 6.1, 582),
    ],
)
def test_costs_are_those_of_the_paper(name: str, params_m: float, macs_m: int) -> None:
    profile = profile_model(name)
    assert round(profile.params / 1e6, 1) == params_m
    assert int(profile.macs / 1e6 + 0.5) == macs_m


@pytest.mark.parametrize(("img_size", "macs_m"), [(192, 418), (160, 290), (128, 186)])
def test_resolution_multiplier_is_that_of_the_paper(img_size: int, macs_m: int) -> None:
    # Howard et al. 2017, Table 7; the paper cuts 290.7 off
    assert int(profile_model("mobilenetv1_100", img_size=img_size).macs / 1e6) == macs_m


@pytest.mark.parametrize(("name", "width"), [("025", 0.25), ("050", 0.5), ("075", 0.75)])
def test_v1_thins_every_layer(name: str, width: float) -> None:
    with torch.device("meta"):
        thin = timm.create_model(f"mobilenetv1_{name}").state_dict()
        full = timm.create_model("mobilenetv1_100").state_dict()
    outputs = {key: value.shape[0] for key, value in full.items() if value.ndim == 4}
    assert {key: thin[key].shape[0] for key in outputs} == {
        key: int(count * width) for key, count in outputs.items()
    }
    assert thin["classifier.weight"].shape == (1000, int(1024 * width))


def test_the_last_layer_of_v2_grows_but_does_not_shrink() -> None:
    with torch.device("meta"):
        features = {
            name: timm.create_model(f"mobilenetv2_{name}").num_features
            for name in ("035", "100", "130")
        }
    assert features == {"035": 1280, "100": 1280, "130": 1664}


@pytest.mark.parametrize(
    ("name", "wider", "hidden"),
    [
        ("mobilenetv3_large_035", "mobilenetv3_large_050", 1280),
        ("mobilenetv3_large_050", "mobilenetv3_large_075", 1280),
        ("mobilenetv3_small_035", "mobilenetv3_small_050", 1024),
    ],
)
def test_v3_widths_keep_the_last_layer_and_fall_in_line(name: str, wider: str, hidden: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert model.head_hidden_size == hidden
    assert profile_model(name).macs < 0.75 * profile_model(wider).macs


@pytest.mark.parametrize("name", widths.__all__)
def test_timm_treats_them_as_its_own(name: str) -> None:
    assert timm.is_model(name)
    assert timm.list_models(name, include_tags=True) == [f"{name}.untrained"]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3, in_chans=1)
        features = timm.create_model(name, features_only=True)
    assert model.get_classifier().out_features == 3
    assert model.conv_stem.in_channels == 1
    assert model.pretrained_cfg["architecture"] == name
    assert len(features(torch.zeros(1, 3, 64, 64, device="meta"))) == 5


def test_a_narrow_model_runs() -> None:
    model = timm.create_model("mobilenetv1_025", num_classes=3).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 32, 32)).isfinite().all()


def test_importing_again_registers_nothing_anew() -> None:
    before = {name: model_entrypoint(name) for name in timm.list_models()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(widths)
    assert {name: model_entrypoint(name) for name in timm.list_models()} == before


def test_a_name_that_timm_has_stays_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    def timms_own(pretrained: bool = False) -> None:
        """Stand in for a later timm's model."""

    registry = importlib.import_module("timm.models._registry")
    monkeypatch.setitem(registry._model_entrypoints, "mobilenetv1_050", timms_own)
    importlib.reload(widths)
    assert model_entrypoint("mobilenetv1_050") is timms_own
