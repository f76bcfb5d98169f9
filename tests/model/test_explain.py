"""Heat maps: Grad-CAM by its definition, and what blurring says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from mnft.device.machine import open_machine
from mnft.errors import ModelError
from mnft.evaluation.checkpoint import open_checkpoint
from mnft.evaluation.images import load_image_set
from mnft.model.explain import compute_gradcam, measure_blur
from mnft.reporter import SILENT
from mnft.tasks import load_activation
from mnft.training.eval_batches import EvalOptions, open_eval_batches


def build(name: str, **more: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=4, **more)
    return model


@pytest.mark.parametrize("name", ["mobilenetv2_035", "mobilenetv3_small_050", "lenet5"])
def test_a_map_is_grad_cam_by_its_definition(name: str) -> None:
    """Selvaraju et al. 2017, equations 1 and 2, with autograd through the whole model."""
    import mnft.model.factory  # noqa: F401 - registers lenet5

    model = build(name).eval()
    size = 32 if name == "lenet5" else 96
    images, outputs = torch.randn(3, 3, size, size), [0, 3, 1]
    found = compute_gradcam(model, images, outputs)
    for image, output, heat in zip(images, outputs, found, strict=True):
        features = model.forward_features(image[None])
        (gradient,) = torch.autograd.grad(model.forward_head(features)[0, output], features)
        weights = gradient[0].mean(dim=(1, 2))
        expected = F.relu(torch.einsum("d,dhw->hw", weights, features[0]))
        torch.testing.assert_close(heat, (expected / expected.max()).detach(), rtol=1e-4, atol=1e-5)


class Layout(nn.Module):
    """Feature maps in a layout of choice, averaged, and one linear layer."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.num_features = layout, 5
        self.num_prefix_tokens = 1
        self.patch_embed = type("Grid", (), {"grid_size": (2, 3)})()
        torch.manual_seed(0)
        self.fc = nn.Linear(5, 2)
        self.maps = torch.randn(1, 5, 2, 3)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.maps.expand(len(images), -1, -1, -1)
        if self.layout == "NHWC":
            return maps.permute(0, 2, 3, 1)
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros(len(images), 1, 5), tokens], dim=1)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        if self.layout == "class token":
            return self.fc(features[:, 0])
        body = features if self.layout == "NHWC" else features[:, 1:]
        return self.fc(body.reshape(len(features), -1, 5).mean(1))


@pytest.mark.parametrize("layout", ["NHWC", "tokens"])
def test_maps_of_other_layouts_are_the_same(layout: str) -> None:
    model = Layout(layout)
    (heat,) = compute_gradcam(model, torch.zeros(1, 3, 8, 8), [1])
    # After average pooling the weights are those of the linear layer: this is CAM.
    expected = F.relu(torch.einsum("d,dhw->hw", model.fc.weight[1], model.maps[0])).detach()
    torch.testing.assert_close(heat, expected / expected.max())


def test_a_model_that_reads_only_a_class_token_has_empty_maps() -> None:
    heat = compute_gradcam(Layout("class token"), torch.zeros(2, 3, 8, 8), [0, 1])
    assert heat.shape == (2, 2, 3)
    assert not heat.any()


def test_a_model_without_feature_maps_is_refused() -> None:
    with pytest.raises(ModelError, match="feature maps"):
        compute_gradcam(nn.Flatten(), torch.zeros(1, 3, 8, 8), [0])
    with pytest.raises(ModelError, match="no grid"):
        compute_gradcam(build("mixer_s32_224").eval(), torch.zeros(1, 3, 224, 224), [0])


def test_the_model_is_given_back_as_it_came() -> None:
    model = build("mobilenetv2_035").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        images = torch.randn(2, 3, 64, 64)
    compute_gradcam(model, images.clone(), [0, 1])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Corner(nn.Module):
    """Looks for texture in the upper left quarter, and nowhere else."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        half = images.shape[-1] // 2
        part = images[:, 0, :half, :half]
        return torch.stack([part.var(dim=(1, 2)), torch.zeros(len(images))], dim=1)


def test_blurring_tells_a_right_map_from_a_wrong_one() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    right, wrong = torch.zeros(2, 4, 4, 4)
    right[:, :2, :2] = 1
    wrong[:, 2:, 2:] = 1
    softmax = load_activation("classify").apply
    marked, elsewhere = measure_blur(Corner(), images, right, [0] * 4, softmax)
    assert marked > 0.15 > 10 * abs(elsewhere)
    marked, elsewhere = measure_blur(Corner(), images, wrong, [0] * 4, softmax)
    assert abs(marked) < 0.01 < elsewhere


@pytest.mark.real
def test_a_map_of_photographs_marks_what_matters(
    assets: Path, tmp_path: Path, run_cli: object
) -> None:
    """A head on frozen ImageNet features, 60 photographs: the test that the report prints."""
    config = tmp_path / "flowers.yaml"
    config.write_text(
        f"data: {{root: {assets / 'data/flowers'}, img_size: 128, workers: 0}}\n"
        f"model: {{name: 'local-dir:{assets / 'weights/tf_mobilenetv3_small_075'}'}}\n"
        "train: {stages: [head], device: cpu}\n"
    )
    assert run_cli("train", config, "--set", "run.name=x").exit_code == 0
    opened = open_checkpoint(Path("runs/x"))
    chosen = load_image_set(opened, None, "test", SILENT).take_evenly(60)
    bundle = opened.bundle
    batches = open_eval_batches(
        chosen.root,
        chosen.samples,
        [0] * 60,
        bundle.preprocessing,
        open_machine("cpu"),
        options=EvalOptions(60, 0),
    )
    images = next(iter(batches)).images.clone()
    with torch.no_grad():
        outputs = bundle.model(images).argmax(1).tolist()
    heat = compute_gradcam(bundle.model, images, outputs)
    softmax = load_activation("classify").apply
    marked, elsewhere = measure_blur(bundle.model, images, heat, outputs, softmax)
    assert marked > 0.1
    assert marked > 2 * elsewhere
    torch.manual_seed(0)
    random, _ = measure_blur(bundle.model, images, torch.rand_like(heat), outputs, softmax)
    assert marked > 2 * random
