"""Weights files: what is read, what is refused, and that converted weights give equal logits."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mnft.errors import ModelError
from mnft.model.weights import layer_names, load_weights

MODEL = "mobilenetv3_small_050"


def build(name: str = MODEL, seed: int = 0, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, **{"num_classes": 4, **kwargs})
    return model.eval()


def randomise_statistics(model: nn.Module) -> None:
    # Small variances, so that the epsilon of BatchNorm shows.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.005, 0.02)
            nn.init.uniform_(module.weight, 0.05, 0.15)
            nn.init.normal_(module.bias, std=0.1)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refuse(model: nn.Module, path: Path, classifier: str | None = "classifier") -> ModelError:
    """Load, expect an error with a hint, and hold that the model did not change."""
    before = snapshot(model)
    with pytest.raises(ModelError) as caught:
        load_weights(model, path, classifier=classifier)
    assert caught.value.hint
    assert equal_states(model.state_dict(), before)
    return caught.value


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "model_state_dict", "timm", "ddp"])
def test_torch_files_are_unwrapped(tmp_path: Path, wrap: str) -> None:
    state = build(seed=1).state_dict()
    training = {"epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)}
    noise = {key: torch.zeros_like(value) for key, value in state.items()}
    checkpoint: Any = {
        "bare": state,
        "timm": {**training, "state_dict": noise, "state_dict_ema": state},
        "ddp": {f"module._orig_mod.{key}": value for key, value in state.items()},
    }.get(wrap, {**training, wrap: state})
    torch.save(checkpoint, tmp_path / "w.pth")
    model = build()
    report = load_weights(model, tmp_path / "w.pth", classifier="classifier")
    assert equal_states(model.state_dict(), dict(state))
    assert (report.loaded, report.head_replaced) == (len(state), False)
    assert (report.source_format, report.model_args) == ("timm", {})


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_safetensors_are_read_whatever_the_suffix(tmp_path: Path, suffix: str) -> None:
    source, model = build(seed=1), build()
    save_file(source.state_dict(), tmp_path / f"w{suffix}")
    load_weights(model, tmp_path / f"w{suffix}", classifier=None)
    assert equal_states(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("case", ["other shape", "absent", "half"])
def test_a_classifier_that_does_not_fit_stays_fresh(tmp_path: Path, case: str) -> None:
    source, model = build(seed=1, num_classes=7 if case == "other shape" else 4), build()
    left_out = {"absent": ("classifier.",), "half": ("classifier.bias",)}.get(case, ())
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(left_out or ("?",))}
    save_file(state, tmp_path / "w.safetensors")
    fresh = model.get_classifier().weight.clone()  # type: ignore[operator]
    report = load_weights(model, tmp_path / "w.safetensors", classifier="classifier")
    assert report.head_replaced
    assert report.loaded == len(model.state_dict()) - 2
    assert torch.equal(model.state_dict()["classifier.weight"], fresh)
    assert torch.equal(model.state_dict()["conv_head.weight"], state["conv_head.weight"])


def test_a_classifier_of_other_classes_stays_fresh(tmp_path: Path) -> None:
    source, model = build(seed=1), build()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    fresh = model.get_classifier().weight.clone()  # type: ignore[operator]
    path = tmp_path / "w.safetensors"
    assert load_weights(model, path, classifier="classifier", keep_head=False).head_replaced
    assert torch.equal(model.state_dict()["classifier.weight"], fresh)
    assert torch.equal(model.state_dict()["conv_head.weight"], source.conv_head.weight)


def test_without_a_classifier_name_every_key_must_fit(tmp_path: Path) -> None:
    save_file(build(num_classes=7).state_dict(), tmp_path / "w.safetensors")
    error = refuse(build(), tmp_path / "w.safetensors", classifier=None)
    assert "classifier.weight (7, 1024), not (4, 1024)" in error.message


def test_a_model_without_a_head_takes_weights_that_have_one(tmp_path: Path) -> None:
    save_file(build(seed=1).state_dict(), tmp_path / "w.safetensors")
    report = load_weights(build(num_classes=0), tmp_path / "w.safetensors", classifier="classifier")
    assert not report.head_replaced


def test_missing_unexpected_and_misshaped_keys_are_named_and_nothing_is_loaded(
    tmp_path: Path,
) -> None:
    state = dict(build(seed=1).state_dict())
    for number in range(6):
        state[f"extra.{number}"] = torch.zeros(1)
    del state["conv_stem.weight"]
    state["conv_head.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    message = refuse(build(), tmp_path / "w.safetensors").message
    assert "1 missing (conv_stem.weight)" in message
    assert "6 unexpected (extra.0, extra.1, extra.2, extra.3, ...)" in message
    assert "1 of another shape (conv_head.bias (3,), not (1024,))" in message


def test_another_architecture_is_called_so(tmp_path: Path) -> None:
    save_file(build("lenet5").state_dict(), tmp_path / "w.safetensors")
    error = refuse(build(), tmp_path / "w.safetensors")
    assert MODEL in error.message
    assert "another architecture" in str(error.hint)


def test_counts_of_batches_may_be_absent(tmp_path: Path) -> None:
    source, model = build(seed=1), build()
    state = {k: v for k, v in source.state_dict().items() if "num_batches_tracked" not in k}
    save_file(state, tmp_path / "w.safetensors")
    assert load_weights(model, tmp_path / "w.safetensors", classifier=None).loaded == len(state)
    assert equal_states(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("in_chans", [1, 4])
def test_the_first_convolution_is_adapted(tmp_path: Path, in_chans: int) -> None:
    source, model = build(seed=1), build(in_chans=in_chans)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors", classifier="classifier")
    gray = torch.rand(2, 1, 32, 32)
    if in_chans == 1:  # one channel acts as the same picture in all three
        torch.testing.assert_close(model(gray), source(gray.expand(-1, 3, -1, -1)))
    else:
        expected = source.conv_stem.weight[:, [0, 1, 2, 0]] * 3 / 4  # type: ignore[index,union-attr]
        torch.testing.assert_close(model.conv_stem.weight, expected)


def test_weights_of_one_channel_do_not_fit_three(tmp_path: Path) -> None:
    save_file(build(in_chans=1).state_dict(), tmp_path / "w.safetensors")
    error = refuse(build(), tmp_path / "w.safetensors")
    assert "conv_stem.weight" in error.message
    assert "set model.in_chans: 1" in str(error.hint)


def test_timm_converts_position_embeddings_of_another_size(tmp_path: Path) -> None:
    source, model = build("test_vit", img_size=160), build("test_vit", seed=1, img_size=96)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors", classifier="head")
    assert (report.source_format, report.head_replaced) == ("original", False)
    old, new = source.state_dict(), model.state_dict()
    assert new["pos_embed"].shape != old["pos_embed"].shape
    assert torch.equal(new["blocks.0.attn.qkv.weight"], old["blocks.0.attn.qkv.weight"])


def torchvision_pair(name: str, num_classes: int = 5) -> tuple[nn.Module, str]:
    return {
        "v2": (torchvision.models.mobilenet_v2, "mobilenetv2_100"),
        "v2 half": (
            lambda **kwargs: torchvision.models.mobilenet_v2(width_mult=0.5, **kwargs),
            "mobilenetv2_050",
        ),
        "v3 large": (torchvision.models.mobilenet_v3_large, "mobilenetv3_large_100"),
        "v3 small": (torchvision.models.mobilenet_v3_small, "mobilenetv3_small_100"),
        "resnet18": (torchvision.models.resnet18, "resnet18"),
    }[name]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["v2", "v2 half", "v3 large", "v3 small", "resnet18"])
def test_torchvision_weights_give_the_same_logits(tmp_path: Path, name: str, suffix: str) -> None:
    create, timm_name = torchvision_pair(name)
    torch.manual_seed(0)
    reference = create(num_classes=5).eval()
    randomise_statistics(reference)
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(reference.state_dict(), path)
    model = build(timm_name, seed=1, num_classes=5)
    report = load_weights(model, path, classifier=layer_names(model, "classifier"))
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = reference(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
        rebuilt = build(timm_name, num_classes=5, **report.model_args)
        rebuilt.load_state_dict(model.state_dict())
        torch.testing.assert_close(rebuilt(images), model(images), rtol=0, atol=0)
    family = {"v2": "torchvision-mobilenetv2", "v3": "torchvision-mobilenetv3"}
    assert report.source_format == family.get(name[:2], "timm")
    assert report.model_args == ({"bn_eps": 1e-3} if name.startswith("v3") else {})
    assert not report.head_replaced


@pytest.mark.parametrize("name", ["v2", "v3 small"])
@pytest.mark.parametrize("with_head", [True, False])
def test_torchvision_weights_take_a_new_head(tmp_path: Path, name: str, with_head: bool) -> None:
    create, timm_name = torchvision_pair(name)
    state = create(num_classes=9).state_dict()
    last = "classifier.1." if name == "v2" else "classifier.3."
    save_file(
        {k: v for k, v in state.items() if with_head or not k.startswith(last)},
        tmp_path / "w.safetensors",
    )
    model = build(timm_name, in_chans=1)
    report = load_weights(model, tmp_path / "w.safetensors", classifier="classifier")
    assert report.head_replaced
    assert report.loaded == len(model.state_dict()) - 2


def test_epsilon_decides_the_logits_of_v3(tmp_path: Path) -> None:
    # The test above would prove nothing if the epsilon did not matter there.
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v3_small(num_classes=5).eval()
    randomise_statistics(reference)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    model = build("mobilenetv3_small_100", num_classes=5)
    load_weights(model, tmp_path / "w.pth", classifier="classifier")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5
        assert not torch.allclose(model(images), reference(images), rtol=1e-4, atol=1e-4)


def test_torchvision_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "v2.pth")
    large = refuse(build("mobilenetv3_large_100"), tmp_path / "v2.pth")
    assert "torchvision-mobilenetv2" in large.message
    assert "conv_stem.weight" in refuse(build("mobilenetv2_050"), tmp_path / "v2.pth").message
    assert "unexpected" in refuse(build("resnet18"), tmp_path / "v2.pth").message
    padded = refuse(build("mobilenetv2_100", pad_type="same"), tmp_path / "v2.pth")
    assert "padding" in padded.message


class Thing:
    """Something that is not a tensor."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": build().state_dict(), "thing": Thing()}, tmp_path / "w.pth")
    error = refuse(build(), tmp_path / "w.pth")
    assert "Thing" in error.message
    assert "state_dict()" in str(error.hint)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x80\x04nonsense", b"PK\x03\x04 half", b"\xff" * 8 + b"{"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert str(path) in refuse(build("lenet5"), path).message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = build("lenet5").state_dict()
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cannot be read" in refuse(build("lenet5"), path).message


@pytest.mark.parametrize(
    ("checkpoint", "found"),
    [
        (torch.zeros(3), "Tensor"),
        ([1, 2], "list"),
        ({}, "nothing"),
        ({"net": {"w": torch.zeros(1)}, "epoch": 3}, "net, epoch"),
        ({"state_dict": {}}, "nothing"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(
    tmp_path: Path, checkpoint: Any, found: str
) -> None:
    torch.save(checkpoint, tmp_path / "w.pth")
    assert found in refuse(build("lenet5"), tmp_path / "w.pth").message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refuse(build("lenet5"), tmp_path / "none.pth").message
    error = refuse(build("lenet5"), tmp_path)
    assert "folder" in error.message
    assert "local-dir:" in str(error.hint)


def test_layer_names() -> None:
    assert layer_names(build("lenet5"), "classifier") == ("classifier",)
    assert layer_names(nn.Linear(1, 1), "classifier") == ()
    distilled = build("deit_tiny_distilled_patch16_224")
    assert layer_names(distilled, "classifier") == ("head", "head_dist")


@pytest.fixture
def real_weights() -> Path:
    assets = os.environ.get("MNFT_ASSETS")
    if not assets:
        pytest.skip("MNFT_ASSETS names no folder of real weights")
    return Path(assets) / "weights"


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "head_replaced"),
    [
        ("mobilenetv2_100", True),
        ("mobilenetv2_035_tf", True),
        ("tf_mobilenetv3_small_075", True),
        ("mobilenetv1_100_tf", True),
    ],
)
def test_real_weights_load_into_a_model_of_five_classes(
    real_weights: Path, folder: str, head_replaced: bool
) -> None:
    config = json.loads((real_weights / folder / "config.json").read_text())
    path = real_weights / folder / "model.safetensors"
    model = build(config["architecture"], num_classes=5, **config["model_args"])
    report = load_weights(model, path, classifier=layer_names(model, "classifier"))
    assert report.head_replaced is head_replaced
    stored = load_file(path)
    backbone = {k: v for k, v in stored.items() if not k.startswith("classifier.")}
    assert report.loaded == len(backbone)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in backbone.items())


@pytest.mark.real
def test_real_weights_with_a_head_keep_it(real_weights: Path) -> None:
    folder = real_weights / "mobilenetv1_100_tf"
    config = json.loads((folder / "config.json").read_text())
    model = build("mobilenetv1_100", num_classes=1000, **config["model_args"])
    report = load_weights(model, folder / "model.safetensors", classifier="classifier")
    assert not report.head_replaced
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), reference(images), rtol=0, atol=0)
