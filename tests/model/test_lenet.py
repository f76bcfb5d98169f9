"""LeNet-5: the paper's sizes, timm's interface, registration."""

from __future__ import annotations

import importlib
import warnings

import pytest
import timm
import torch
from timm.models import group_parameters

from mnft.errors import ModelError
from mnft.model import lenet


def test_parameters_are_those_of_the_paper_but_for_the_named_variations() -> None:
    # C1 156, C3 with all connections 2,416 (the paper's 1,516 with Table I), C5 48,120, F6 10,164.
    model = timm.create_model("lenet5", in_chans=1)
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert {name: count for name, count in counts.items() if count} == {
        "conv1": 156,
        "conv2": 2416,
        "fc1": 48120,
        "fc2": 10164,
        "classifier": 850,
    }


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("img_size", [16, 28, 32, 64, (32, 48)])
def test_runs_with_other_channels_and_sizes(in_chans: int, img_size: int | tuple[int, int]) -> None:
    model = timm.create_model("lenet5", num_classes=7, in_chans=in_chans, img_size=img_size)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    assert model(torch.rand(2, in_chans, height, width)).shape == (2, 7)


def test_default_input_is_rgb_of_32_pixels() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("lenet5"))
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["crop_pct"] == 1.0


def test_the_saved_input_size_alone_builds_the_same_model() -> None:
    model = timm.create_model("lenet5", pretrained_cfg_overlay={"input_size": (1, 28, 28)})
    assert model(torch.rand(1, 1, 28, 28)).shape == (1, 10)


def test_too_small_an_image_is_refused_with_a_hint() -> None:
    with pytest.raises(ModelError, match="15x15") as caught:
        timm.create_model("lenet5", img_size=15)
    assert caught.value.hint is not None
    assert "16" in caught.value.hint


def test_features_and_head_make_the_logits() -> None:
    model = timm.create_model("lenet5").eval()
    images = torch.rand(2, 3, 32, 32)
    features = model.forward_features(images)
    hidden = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, model.num_features, 5, 5)
    assert hidden.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(hidden), model(images))


def test_reset_classifier_changes_the_last_layer_alone() -> None:
    model = timm.create_model("lenet5").double()
    before = model.fc2.weight.clone()
    model.reset_classifier(4)
    assert model.get_classifier().weight.shape == (4, 84)
    assert model.get_classifier().weight.dtype == torch.float64
    assert model.num_classes == 4
    assert torch.equal(model.fc2.weight, before)
    model.reset_classifier(0)
    assert model(torch.rand(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 84)


def test_drop_rate_acts_in_training_only() -> None:
    model = timm.create_model("lenet5", drop_rate=0.9)
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_checkpointing_gives_the_same_gradients() -> None:
    model = timm.create_model("lenet5").train()
    images = torch.rand(2, 3, 32, 32)
    model(images).sum().backward()
    plain = model.conv1.weight.grad.clone()
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).sum().backward()
    torch.testing.assert_close(model.conv1.weight.grad, plain)


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_are_grouped_from_the_input_to_the_output(coarse: bool) -> None:
    model = timm.create_model("lenet5")
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    order = [groups[i][0].split(".")[0] for i in range(len(groups))]
    assert order == ["conv1", "conv2", "fc1", "fc2", "classifier"]


def test_features_only() -> None:
    model = timm.create_model("lenet5", features_only=True)
    assert [tuple(f.shape) for f in model(torch.rand(1, 3, 32, 32))] == [
        (1, 6, 14, 14),
        (1, 16, 5, 5),
    ]


def test_learns_eight_images_by_heart() -> None:
    torch.manual_seed(0)
    model = timm.create_model("lenet5", num_classes=4, in_chans=1)
    images, targets = torch.rand(8, 1, 32, 32), torch.arange(8) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    assert torch.equal(model(images).argmax(1), targets)


def test_importing_again_registers_nothing_anew() -> None:
    before = timm.list_models()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(lenet)
    assert timm.list_models() == before
    assert timm.list_models("lenet5", include_tags=True) == ["lenet5.untrained"]
    assert not timm.is_model_pretrained("lenet5")
