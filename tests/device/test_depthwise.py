"""Depthwise convolutions with an fp32 backward pass: the same outputs, gradients no worse."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Conv2dSame, StdConv2d
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnft.device.cpu.depthwise import DepthwiseConv2d, DepthwiseConv2dSame, speed_up_depthwise
from mnft.device.select import autocast

CPU = torch.device("cpu")
LAYERS = {
    "strided": lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
    "large": lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
    "dilated": lambda: nn.Conv2d(8, 8, 3, dilation=2, groups=8),
    "several outputs": lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8),
    "same": lambda: nn.Conv2d(8, 8, 5, padding="same", groups=8),
    "same, uneven": lambda: nn.Conv2d(8, 8, (4, 3), dilation=(1, 3), padding="same", groups=8),
    "valid": lambda: nn.Conv2d(8, 8, 3, stride=2, padding="valid", groups=8),
    "tensorflow": lambda: Conv2dSame(8, 8, 3, stride=2, groups=8),
    "tensorflow, uneven": lambda: Conv2dSame(8, 8, (5, 3), stride=(2, 1), groups=8, bias=False),
}


def is_mixed(output: Tensor) -> bool:
    return "_MixedConvolution" in type(output.grad_fn).__name__


def pair(kind: str) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The plain layer and the changed one, with equal weights."""
    torch.manual_seed(0)
    plain = LAYERS[kind]()
    changed = copy.deepcopy(plain)
    assert speed_up_depthwise(changed) == 1
    return plain, changed


def gradients(layer: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of the images, the weight and the bias."""
    torch.manual_seed(1)
    images = torch.randn(4, 8, 13, 12).requires_grad_()
    with autocast(CPU, dtype):
        output = layer(images)
    output.float().square().sum().backward()
    assert images.grad is not None
    return output, [images.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_are_the_same_and_gradients_no_worse(kind: str) -> None:
    plain, changed = pair(kind)
    _, reference = gradients(copy.deepcopy(plain), torch.float32)
    expected, rounded = gradients(plain, torch.bfloat16)
    output, found = gradients(changed, torch.bfloat16)
    assert is_mixed(output)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    assert len(found) == len(reference) == 1 + len(list(plain.parameters()))
    for new, bf16, exact in zip(found, rounded, reference, strict=True):
        assert new.dtype == torch.float32
        assert relative(new, exact) < 0.01
        assert relative(new, exact) <= relative(bf16, exact) + 1e-3


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", ["strided", "same", "tensorflow"])
def test_nothing_else_changes(kind: str) -> None:
    plain, changed = pair(kind)
    images = torch.randn(2, 8, 9, 9)
    output, found = gradients(changed, torch.float32)
    expected, reference = gradients(plain, torch.float32)
    assert not is_mixed(output)
    assert torch.equal(output, expected)
    assert all(torch.equal(*both) for both in zip(found, reference, strict=True))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not is_mixed(changed(images))
    with torch.inference_mode(), autocast(CPU, torch.bfloat16):
        assert torch.equal(changed(images), plain(images))
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        assert torch.equal(changed(images), plain(images))


def test_which_layers_are_changed() -> None:
    others = nn.ModuleList(
        [
            nn.Conv2d(8, 8, 3, padding=1, groups=8),  # fast in bf16
            nn.Conv2d(8, 8, 3, stride=2, groups=4),
            nn.Conv2d(1, 8, 5),
            nn.Conv2d(8, 8, 5, padding=2, padding_mode="reflect", groups=8),
            StdConv2d(8, 8, 5, groups=8),
            nn.Conv1d(8, 8, 5, groups=8),
        ]
    )
    kinds = [type(layer) for layer in others]
    assert speed_up_depthwise(others) == 0
    assert [type(layer) for layer in others] == kinds
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=2)
    names = {name for name, _ in model.named_modules()}
    assert speed_up_depthwise(model) == sum(
        isinstance(layer, DepthwiseConv2d | DepthwiseConv2dSame) for layer in model.modules()
    )
    assert any(type(layer) is DepthwiseConv2dSame for layer in model.modules())
    assert speed_up_depthwise(model) == 0  # they are changed already
    assert {name for name, _ in model.named_modules()} == names
    assert "DepthwiseConv2dSame(" in repr(model)


def test_what_is_frozen_gets_no_gradient() -> None:
    _, layer = pair("strided")
    images = torch.randn(2, 8, 9, 9)
    with autocast(CPU, torch.bfloat16):
        layer(images).float().sum().backward()  # images without gradient
    assert layer.weight.grad is not None
    layer.zero_grad()
    layer.weight.requires_grad_(False)
    images.requires_grad_()
    with autocast(CPU, torch.bfloat16):
        layer(images).float().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert images.grad is not None
    layer.bias.requires_grad_(False)
    with autocast(CPU, torch.bfloat16):
        assert not layer(images.detach()).requires_grad


def small_model() -> nn.Module:
    torch.manual_seed(2)
    model = timm.create_model("mobilenetv2_035", num_classes=3).train()
    assert speed_up_depthwise(model) == 4
    return model


def model_gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)
    with autocast(CPU, torch.bfloat16):
        logits = model(torch.randn(4, 3, 32, 32))
    logits.float().square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_copies_and_weights() -> None:
    model = small_model()
    for twin in (copy.deepcopy(model), ModelEmaV3(model).module, pickle.loads(pickle.dumps(model))):
        assert sum(isinstance(layer, DepthwiseConv2d) for layer in twin.modules()) == 4
    plain = timm.create_model("mobilenetv2_035", num_classes=3)
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(plain.eval()(images), model.eval()(images))


def test_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        found = model_gradients(DistributedDataParallel(small_model()))
    finally:
        torch.distributed.destroy_process_group()
    expected = model_gradients(small_model())
    assert found.keys() == {f"module.{name}" for name in expected}
    for name, gradient in expected.items():
        assert torch.equal(found[f"module.{name}"], gradient)
