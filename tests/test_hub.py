"""`hf-hub:` names and pretrained timm names, on a local copy of the hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants as hub

from mnft.config.schema import ModelConfig
from mnft.errors import ModelError
from mnft.model import factory
from mnft.model.bundle import ModelCard, save_bundle
from mnft.model.factory import build_model
from mnft.preprocessing import Preprocessing

REVISION = "0" * 40


def put_in_cache(
    cache: Path, repository: str, architecture: str, num_classes: int
) -> torch.nn.Module:
    """Save a model with random weights as the hub's cache would hold it."""
    model = timm.create_model(architecture, num_classes=num_classes).eval()
    folder = cache / f"models--{repository.replace('/', '--')}"
    preprocessing = Preprocessing((3, 64, 64), (0.5,) * 3, (0.25,) * 3, "bicubic", 0.9)
    names = tuple(f"class {number}" for number in range(num_classes))
    card = ModelCard(architecture, {}, preprocessing, names, model.pretrained_cfg)
    save_bundle(folder / "snapshots" / REVISION, model.state_dict(), card, {})
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    return model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_name_loads_from_the_cache_with_a_new_head(cache: Path) -> None:
    source = put_in_cache(cache, "someone/flowers", "mobilenetv3_small_050", 7)
    built = build_model(ModelConfig(name="hf-hub:someone/flowers"), num_classes=3)
    assert built.architecture == "mobilenetv3_small_050"
    assert built.preprocessing.input_size == (3, 64, 64)
    assert built.preprocessing.std == (0.25,) * 3
    assert torch.equal(built.model.conv_stem.weight, source.conv_stem.weight)
    assert built.model.classifier.out_features == 3


def test_a_pretrained_timm_name_loads_from_the_cache(cache: Path) -> None:
    repository = timm.get_pretrained_cfg("mobilenetv3_small_050").hf_hub_id
    source = put_in_cache(cache, repository, "mobilenetv3_small_050", 1000)
    built = build_model(ModelConfig(name="mobilenetv3_small_050"), num_classes=3)
    assert torch.equal(built.model.conv_head.weight, source.conv_head.weight)
    assert "mobilenetv3_small_050" in built.weights


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "hf-hub:someone/else"])
def test_what_is_not_in_the_cache_is_one_error_that_says_what_to_bring(
    cache: Path, name: str
) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(ModelConfig(name=name), num_classes=3)
    assert caught.value.key in {"model.pretrained", "model.name"}
    assert "cannot be downloaded" in caught.value.message
    assert "local-dir:FOLDER" in str(caught.value.hint)


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(factory.socket, "create_connection", refuse)
    factory._go_offline_if_unreachable()
    assert hub.HF_HUB_OFFLINE
