"""Pruned models: cut by shapes they equal the originals, and folders of them open as any other."""

from __future__ import annotations

import copy
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mnft.compress.prune.channels import add_gradients, estimate_statistics, plan_targets, prune
from mnft.config.schema import ModelConfig
from mnft.errors import CheckpointError, ExportError, ModelError
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import build_model
from mnft.model.freeze import freeze
from mnft.model.profile import compute_macs
from mnft.model.pruned import is_pruned, shrink
from mnft.preprocessing import Preprocessing

tp = pytest.importorskip("torch_pruning")

SIZE = (3, 32, 32)
CLASSES = ("blue", "green", "red")


def create(name: str, num_classes: int = 3, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=num_classes, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def halve(model: nn.Module, *, round_to: int = 8, share: float = 0.6) -> nn.Module:
    macs = int(share * compute_macs(model, SIZE))
    return prune(model, SIZE, max_macs=macs, round_to=round_to, importance="magnitude")


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


FAMILIES = [
    ("lenet5", 1),
    ("mobilenetv1_025", 8),
    ("mobilenetv2_035", 8),
    ("mobilenetv3_small_050", 8),
    ("mobilenetv3_large_035", 8),
    ("mobilenetv4_conv_small_035", 8),
    ("resnet18", 8),
    ("convnext_atto", 8),
]


@pytest.mark.parametrize(("name", "round_to"), FAMILIES)
def test_a_model_is_rebuilt_from_the_shapes_of_its_pruned_tensors(name, round_to):
    full = create(name)
    pruned = halve(full, round_to=round_to)
    rebuilt = create(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in pruned.state_dict().items()}
    shrink(rebuilt, shapes, SIZE)
    rebuilt.load_state_dict(pruned.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(rebuilt(images()), pruned(images()))
        assert not torch.equal(full(images()), pruned(images()))
    assert compute_macs(rebuilt, SIZE) <= 0.6 * compute_macs(full, SIZE)
    # A copy for the average of the weights, another head, and gradients: as of any timm model.
    twin = copy.deepcopy(rebuilt)
    twin.reset_classifier(7)
    assert twin(images()).shape == (2, 7)
    freeze(rebuilt, "backbone")
    rebuilt(images()).sum().backward()
    assert rebuilt.get_classifier().weight.grad is not None


@pytest.mark.parametrize("name", ["mobilenetv2_035", "mobilenetv3_small_050"])
def test_widths_are_multiples_and_the_macs_are_near_the_target(name):
    full = create(name)
    pruned = halve(full, share=0.5)
    assert 0.4 < compute_macs(pruned, SIZE) / compute_macs(full, SIZE) <= 0.5
    before = {n: m for n, m in full.named_modules() if isinstance(m, nn.Conv2d)}
    after = {n: m for n, m in pruned.named_modules() if isinstance(m, nn.Conv2d)}
    cut = [n for n in after if after[n].out_channels < before[n].out_channels]
    assert len(cut) > 10
    assert all(after[n].out_channels % 8 == 0 for n in cut)
    assert pruned.get_classifier().out_features == 3


def test_the_model_that_was_given_stays_as_it_is():
    model = create("mobilenetv2_035")
    before = copy.deepcopy(model.state_dict())
    halve(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_odd_multiple_and_a_small_one_come_closer():
    model = create("mobilenetv2_035")
    full = compute_macs(model, SIZE)
    fine = compute_macs(halve(model, round_to=1, share=0.7), SIZE) / full
    assert 0.68 < fine <= 0.7


def test_a_share_that_cannot_be_reached_says_what_can():
    with pytest.raises(
        ModelError, match=r"10.0% of the MACs cannot be reached.* are left"
    ) as error:
        halve(create("lenet5"), share=0.1)
    assert error.value.key == "prune.macs"


def test_a_transformer_is_refused():
    model = create("vit_tiny_patch16_224", img_size=32, patch_size=8)
    with pytest.raises(ModelError, match="VisionTransformer cannot be pruned"):
        halve(model)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ExportError, match="torch-pruning") as error:
        halve(create("lenet5"))
    assert "mnft[prune]" in str(error.value.hint)


def test_taylor_keeps_the_channels_that_the_loss_depends_on():
    """Of LeNet-5's first layer some channels do nothing: their way to the next layer is cut."""
    model = create("lenet5")
    dead = [0, 2, 5]
    with torch.no_grad():
        model.conv1.weight[dead] *= 10  # by their size they would stay
        model.conv2.weight[:, dead] = 0
    kept = [channel for channel in range(6) if channel not in dead]
    macs = int(0.4 * compute_macs(model, SIZE))
    batches = [Batch(images(8), torch.arange(8) % 3)] * 2
    add_gradients(model, batches, 16)
    options = {"max_macs": macs, "round_to": 1}
    taylor = prune(model, SIZE, importance="taylor", **options).conv1.weight
    magnitude = prune(model, SIZE, importance="magnitude", **options).conv1.weight
    assert len(taylor) <= 4
    own = model.conv1.weight
    assert all(any(torch.equal(row, own[channel]) for row in taylor) for channel in kept[:1])
    assert sum(any(torch.equal(row, own[c]) for row in taylor) for c in dead) < sum(
        any(torch.equal(row, own[c]) for row in magnitude) for c in dead
    )


class Batch:
    """As much of a batch as the functions read."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.images, self.targets = images, targets


def test_gradients_are_those_of_the_mean_loss_and_leave_the_statistics():
    model = create("mobilenetv2_035").train()
    twin = create("mobilenetv2_035")
    batches = [Batch(images(4), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    add_gradients(model, iter(batches), 8)  # two batches
    loss = nn.functional.cross_entropy(twin(images(4)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert torch.allclose(model.conv_stem.weight.grad, twin.conv_stem.weight.grad, atol=1e-5)
    assert torch.equal(model.bn1.running_mean, twin.bn1.running_mean)
    assert model.training


def test_statistics_are_measured_anew():
    model = create("mobilenetv2_035")
    weights = copy.deepcopy(dict(model.named_parameters()))
    batches = [Batch(images(8), torch.zeros(8)), Batch(images(8) + 1, torch.zeros(8))]
    estimate_statistics(model, iter(batches), 16)
    stem = torch.stack([model.conv_stem(batch.images).mean((0, 2, 3)) for batch in batches])
    assert torch.allclose(model.bn1.running_mean, stem.mean(0), atol=1e-5)
    assert not model.bn1.training
    assert model.bn1.momentum == 0.1
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_the_targets_of_the_steps():
    assert plan_targets(0.7, None) == [0.7]
    assert plan_targets(0.49, None) == pytest.approx([0.7, 0.49])
    assert len(plan_targets(0.2, None)) == 3
    assert plan_targets(0.5, 1) == [0.5]


# --- folders


@cache
def prune_once(name: str) -> nn.Module:
    return halve(create(name), round_to=1 if name == "lenet5" else 8)


def save_pruned(folder: Path, name: str = "mobilenetv2_035") -> nn.Module:
    pruned = prune_once(name)
    card = ModelCard(
        architecture=name,
        model_args={},
        preprocessing=Preprocessing(
            input_size=SIZE,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            interpolation="bilinear",
            crop_pct=1.0,
            crop_mode="center",
        ),
        labels=CLASSES,
        pretrained_cfg=pruned.pretrained_cfg,
        pruned=True,
    )
    save_bundle(folder, pruned.state_dict(), card, {})
    return pruned


def test_a_pruned_folder_opens(tmp_path):
    pruned = save_pruned(tmp_path / "small")
    bundle = load_bundle(tmp_path / "small")
    with torch.inference_mode():
        assert torch.equal(bundle.model(images()), pruned(images()))
    assert bundle.labels == CLASSES
    assert bundle.preprocessing.input_size == SIZE
    assert not bundle.model.training


def test_training_starts_from_a_pruned_folder_with_its_own_or_other_classes(tmp_path):
    pruned = save_pruned(tmp_path / "small")
    config = ModelConfig(name=f"local-dir:{tmp_path / 'small'}")
    same = build_model(config, num_classes=3, labels=CLASSES, img_size=32)
    other = build_model(config, num_classes=2, labels=("cat", "dog"), img_size=32)
    assert same.pruned
    assert other.pruned
    with torch.inference_mode():
        assert torch.equal(same.model.eval()(images()), pruned(images()))
        assert other.model.eval()(images()).shape == (2, 2)
    own, new = pruned.state_dict(), other.model.state_dict()
    assert all(torch.equal(own[k], new[k]) for k in own if not k.startswith("classifier"))
    assert "its head too" in same.weights
    assert "new head" in other.weights


def test_a_pruned_width_can_start_from_random_weights_or_take_grey_images(tmp_path):
    pruned = save_pruned(tmp_path / "small")
    name = f"local-dir:{tmp_path / 'small'}"
    fresh = build_model(ModelConfig(name=name, pretrained=False), num_classes=3, img_size=32)
    own, new = pruned.state_dict(), fresh.model.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in new.items()}
    assert not torch.equal(own["conv_stem.weight"], new["conv_stem.weight"])
    grey = build_model(ModelConfig(name=name, in_chans=1), num_classes=3, img_size=32)
    expected = own["conv_stem.weight"].sum(1, keepdim=True)
    assert torch.allclose(grey.model.state_dict()["conv_stem.weight"], expected, atol=1e-6)


def test_weights_of_a_pruned_folder_can_be_named_as_a_file(tmp_path):
    pruned = save_pruned(tmp_path / "small")
    weights = str(tmp_path / "small" / "model.safetensors")
    config = ModelConfig(name="mobilenetv2_035", pretrained=weights)
    built = build_model(config, num_classes=3, labels=CLASSES, img_size=32)
    with torch.inference_mode():
        assert torch.equal(built.model.eval()(images()), pruned(images()))
    wrong = ModelConfig(name="mobilenetv3_small_050", pretrained=weights)
    with pytest.raises(ModelError, match=r"does not fit|no part of|do not fit"):
        build_model(wrong, num_classes=3, labels=CLASSES, img_size=32)


def test_the_mark_is_plain_and_an_unpruned_folder_has_none(tmp_path):
    save_pruned(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["mnft"] == {"pruned": True}
    assert config["architecture"] == "mobilenetv2_035"
    assert is_pruned(config)
    for other in ({}, {"mnft": None}, {"mnft": {"pruned": "yes"}}, [], None):
        assert not is_pruned(other)


def damage(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if how == "too wide":
        tensors["conv_stem.weight"] = torch.zeros(99, 3, 3, 3)
    elif how == "inconsistent":
        tensors["conv_stem.weight"] = tensors["conv_stem.weight"][:3].clone()
    elif how == "no such width":
        tensors["conv_stem.weight"] = torch.zeros(0, 3, 3, 3)
    elif how == "other kernel":
        tensors["conv_stem.weight"] = torch.zeros(8, 3, 1, 1)
    elif how == "missing":
        del tensors["bn1.weight"]
    elif how == "left over":
        tensors["more.weight"] = torch.zeros(3)
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:500])
    else:
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "how",
    [
        "too wide",
        "inconsistent",
        "no such width",
        "other kernel",
        "missing",
        "left over",
        "cut short",
    ],
)
def test_a_damaged_pruned_folder_is_refused(tmp_path, how):
    folder = tmp_path / "small"
    save_pruned(folder)
    damage(folder, how)
    with pytest.raises(CheckpointError, match="small"):
        load_bundle(folder)
    with pytest.raises(ModelError):
        build_model(ModelConfig(name=f"local-dir:{folder}"), num_classes=3, img_size=32)


def test_lenet_of_another_image_size_is_refused(tmp_path):
    save_pruned(tmp_path / "small", "lenet5")
    config = ModelConfig(name=f"local-dir:{tmp_path / 'small'}")
    assert build_model(config, num_classes=3, img_size=32).pruned
    with pytest.raises(ModelError, match=r"do not fit|no part of") as error:
        build_model(config, num_classes=3, img_size=28)
    assert "data.img_size" in str(error.value.hint)
