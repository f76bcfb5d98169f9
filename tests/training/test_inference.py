"""Collecting what a model gives: order, few copies from the device, batches that are too large."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mnft.config.evaluation import EvalConfig
from mnft.config.schema import Config
from mnft.data.batches.batch import Batch
from mnft.device.machine import Machine
from mnft.device.ranks import rows
from mnft.preprocessing import Preprocessing
from mnft.training.head.features import compute_features
from mnft.training.inference import InParts, choose_eval_batch_size, compute_outputs

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


class Classifier(nn.Module):
    """As timm's: features, and a head on them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images.flatten(1)).tanh()

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def batches(
    images: Tensor, targets: Tensor, *, size: int = 8, order: list[int] | None = None
) -> Iterator[Batch]:
    places = order or list(range(len(images)))
    for start in range(0, len(places), size):
        chosen = places[start : start + size]
        yield Batch(images[chosen], targets[chosen], chosen, [])


class Copies(TorchDispatchMode):
    """Counts the copies from a GPU to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func._schema.name in {"aten::to", "aten::_to_copy"}:  # the first in inference mode
            self.count += args[0].device.type == "cuda" and made.device.type == "cpu"
        return made


@pytest.mark.parametrize("most_kept", [1, 70, 1 << 26])
def test_outputs_are_in_the_order_of_the_images(monkeypatch, most_kept):
    monkeypatch.setattr(rows, "_MOST_KEPT", most_kept)
    torch.manual_seed(0)
    model, images = Classifier(), torch.randn(50, 3, 2, 2)
    targets = torch.arange(50) % 3
    order = np.random.default_rng(0).permutation(50).tolist()
    one_by_one = batches(images, targets, order=order)
    outputs = compute_outputs(model, one_by_one, Machine(CPU), num_outputs=3)
    with torch.no_grad():
        expected = torch.cat([model(part) for part in images.split(8)])
    assert outputs.positions.tolist() == list(range(50))
    assert outputs.targets.tolist() == targets.tolist()
    np.testing.assert_allclose(outputs.values, expected.numpy(), atol=1e-6)
    assert outputs.values.dtype == np.float32
    assert outputs.positions.dtype == outputs.targets.dtype == np.int64


def test_no_images_give_no_outputs():
    outputs = compute_outputs(Classifier(), [], Machine(CPU), num_outputs=3)
    assert outputs.values.shape == (0, 3)
    assert outputs.positions.shape == outputs.targets.shape == (0,)


def test_a_device_is_waited_for_once_and_not_for_each_batch(monkeypatch):
    """On a fake GPU: it computes nothing, but knows where each tensor would be."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(GPU):
            model = Classifier()
        images = torch.empty(50, 3, 2, 2, device=GPU)
        targets = torch.zeros(50, dtype=torch.int64, device=GPU)
        with Copies() as copies:
            features = compute_features(
                model, batches(images, targets), Machine(GPU), dtype=torch.float32
            )
        assert features.values.shape == (50, 6)
        assert features.values.device == features.targets.device == CPU
        assert copies.count == 2  # the features and the labels of all
        at_the_end = []
        collect = rows.Rows.collect

        def collected(own):
            at_the_end.append(copies.count)
            collect(own)  # NumPy takes no fake tensors

        monkeypatch.setattr(rows.Rows, "collect", collected)
        with Copies() as copies:
            compute_outputs(model, batches(images, targets), Machine(GPU), num_outputs=3)
        assert at_the_end == [0]
        assert copies.count == 2


class Small:
    """Computes at most so many images at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.sum((1, 2, 3))[:, None]


def test_a_batch_that_does_not_fit_is_computed_in_parts(caplog):
    caplog.set_level(logging.WARNING, logger="mnft")
    small, images = Small(5), torch.randn(16, 3, 2, 2)
    compute = InParts(small)
    expected = images.sum((1, 2, 3))[:, None]
    assert torch.equal(compute(images), expected)
    assert small.sizes == [16, 8, 4, 4, 4, 4]
    small.sizes.clear()
    assert torch.equal(compute(images), expected)
    assert small.sizes == [4, 4, 4, 4]  # what did not fit is not tried again
    assert torch.equal(compute(images[:2]), expected[:2])
    assert compute(images[:0]).shape == (0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: batches are now evaluated in 2 parts",
        "out of memory: batches are now evaluated in 4 parts",
    ]


def test_what_does_not_fit_at_all_is_an_error():
    small = Small(0)
    with pytest.raises(torch.OutOfMemoryError):
        InParts(small)(torch.zeros(4, 3, 2, 2))
    assert small.sizes == [4, 2, 1]
    with pytest.raises(RuntimeError, match="shape"):
        InParts(lambda images: images.view(-1, 7))(torch.zeros(4, 3, 2, 2))


@pytest.mark.parametrize(
    ("side", "stored_for", "size"),
    [
        (224, CPU, 64),
        (224, None, 64),
        (224, torch.device("mps"), 64),
        (64, GPU, 256),
        (224, GPU, 256),
        (320, GPU, 125),
        (600, GPU, 64),
    ],
)
def test_auto_takes_more_images_on_a_gpu_that_need_not_wait_for_them(side, stored_for, size):
    spec = Preprocessing((3, side, side), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    config = Config.model_validate({"data": {"root": "x"}}).eval
    assert config.batch_size == "auto"
    assert choose_eval_batch_size(config, spec, stored_for=stored_for) == size
    assert choose_eval_batch_size(EvalConfig(batch_size=7), spec, stored_for=stored_for) == 7
