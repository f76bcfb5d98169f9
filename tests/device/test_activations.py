"""ReLU6 that keeps its output: the same bits as torch's, and less memory."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from mnft.device.cpu.activations import ReLU6, save_memory_of_relu6

EDGES = [-7.0, -0.0, 0.0, 1e-38, 3.0, 6.0, 6.0001, 50.0, float("inf"), float("-inf")]


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [True, False])
def test_values_and_gradients_are_those_of_torch(dtype: torch.dtype, inplace: bool) -> None:
    found = []
    for layer in (nn.ReLU6(inplace), ReLU6(inplace)):
        values = torch.tensor(EDGES, dtype=dtype, requires_grad=True)
        before = values * 1
        output = layer(before)
        output.backward(torch.arange(1.0, 11, dtype=dtype))
        assert (output.data_ptr() == before.data_ptr()) is inplace
        found.append((output.detach(), values.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("freeze_batchnorm", [True, False])
def test_a_model_learns_the_same_bit_for_bit_with_less_memory(freeze_batchnorm: bool) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv2_035", num_classes=3).train(not freeze_batchnorm)
    changed = copy.deepcopy(plain)
    assert save_memory_of_relu6(changed) == 35
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for model in (plain, changed):
        torch.manual_seed(1)  # dropout
        with torch.autocast("cpu", torch.bfloat16):
            model(images).float().square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept_bytes(changed, images) < 0.78 * kept_bytes(plain, images)


def test_evaluation_views_and_subclasses() -> None:
    class Own(nn.ReLU6):
        pass

    model = nn.Sequential(nn.ReLU6(), Own())
    assert save_memory_of_relu6(model) == 1
    assert type(model[1]) is Own
    layer = ReLU6(inplace=True)
    with torch.inference_mode():
        assert layer(torch.tensor([-1.0, 9.0])).tolist() == [0.0, 6.0]
    whole = torch.tensor([[-1.0, 2.0], [9.0, 3.0]], requires_grad=True)
    values = whole * 1
    layer(values[1])  # in place: the whole sees it
    assert values.tolist() == [[-1.0, 2.0], [6.0, 3.0]]
    values.sum().backward()
    assert whole.grad is not None
    assert whole.grad.tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_a_value_that_another_layer_needs_is_not_lost_unseen() -> None:
    values = torch.tensor([1.0, 9.0], requires_grad=True)
    before = values.exp()  # needs its output for the gradient
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ReLU6(inplace=True)(before).sum().backward()
