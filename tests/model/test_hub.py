"""`hf-hub:` names and pretrained timm names, on a local copy of the hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file

from mnft.config.schema import ModelConfig
from mnft.errors import ModelError
from mnft.model import sources
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


def test_a_hub_head_is_kept_for_the_same_classes(cache: Path) -> None:
    source = put_in_cache(cache, "someone/flowers", "mobilenetv3_small_050", 3)
    names = ("class 0", "class 1", "class 2")
    for wanted, kept in ((names, True), (names[::-1], False), (None, False)):
        config = ModelConfig(name="hf_hub:someone/flowers")  # timm's older spelling
        built = build_model(config, num_classes=3, labels=wanted)
        same = torch.equal(built.model.classifier.weight, source.classifier.weight)
        assert same is kept
        assert "from hf-hub:someone/flowers" in built.weights


def test_a_hub_name_may_carry_a_revision(cache: Path) -> None:
    source = put_in_cache(cache, "someone/flowers", "mobilenetv3_small_050", 3)
    folder = cache / "models--someone--flowers"
    (folder / "refs" / "main").rename(folder / "refs" / "v1")
    built = build_model(ModelConfig(name="hf-hub:someone/flowers@v1"), num_classes=3)
    assert torch.equal(built.model.conv_stem.weight, source.conv_stem.weight)
    with pytest.raises(ModelError, match="cannot be downloaded"):
        build_model(ModelConfig(name="hf-hub:someone/flowers"), num_classes=3)


def test_a_hub_model_of_torch_weights(cache: Path) -> None:
    source = put_in_cache(cache, "someone/flowers", "mobilenetv3_small_050", 3)
    (weights,) = cache.rglob("model.safetensors")
    torch.save(source.state_dict(), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    built = build_model(ModelConfig(name="hf-hub:someone/flowers"), num_classes=3)
    assert torch.equal(built.model.conv_stem.weight, source.conv_stem.weight)
    weights.with_name("pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="cannot be downloaded"):
        build_model(ModelConfig(name="hf-hub:someone/flowers"), num_classes=3)


def test_hub_weights_that_do_not_fit_are_refused(cache: Path) -> None:
    """timm itself would load the half that fits."""
    source = put_in_cache(cache, "someone/flowers", "mobilenetv3_small_050", 7)
    (weights,) = cache.rglob("model.safetensors")
    state = {k: v for k, v in source.state_dict().items() if k != "conv_stem.weight"}
    save_file(state, weights)
    with pytest.raises(ModelError, match=r"1 missing \(conv_stem.weight\)"):
        build_model(ModelConfig(name="hf-hub:someone/flowers"), num_classes=3)


@pytest.mark.parametrize("name", ["hf-hub:a/b/c", "hf-hub:a/b@c@d"])
def test_what_is_no_repository_name_is_refused(cache: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(ModelConfig(name=name), num_classes=3)
    assert caught.value.key == "model.name"


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
    monkeypatch.setattr(sources.socket, "create_connection", refuse)
    sources.go_offline_if_unreachable()
    assert hub.HF_HUB_OFFLINE
