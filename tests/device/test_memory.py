"""Memory of the device: measuring it, telling that it ran out, finding a batch that fits."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mnft.config.schema import Config, ModelConfig
from mnft.data.batches.batch import Batch
from mnft.device.machine import Machine
from mnft.device.memory import (
    explaining_memory,
    is_out_of_memory,
    peak_memory_mb,
    reset_peak_memory,
)
from mnft.device.ranks.distributed import Ranks
from mnft.errors import TrainError
from mnft.model.factory import build_model
from mnft.training import batch_size, inference
from mnft.training.batch_size import find_batch_size
from mnft.training.head.features import compute_features
from mnft.training.inference import compute_outputs, split_for_evaluation

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 4000000000000 bytes. Error code 12"
        ),
        RuntimeError("[enforce fail at ...] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        # A GPU that somebody else fills:
        torch.AcceleratorError(
            "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs."
        ),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        torch.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for "
            "details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 2 'out of memory'"
        ),
    ],
    ids=lambda error: str(error)[:40],
)
def test_errors_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes cannot be multiplied"),
        RuntimeError("DataLoader worker: the workers are out of shared memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        ValueError("CUDA out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_an_error_that_torch_raises_on_this_cpu() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_an_error_of_memory_becomes_one_for_people_and_others_pass() -> None:
    full = torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaError...'")
    with pytest.raises(TrainError) as raised, explaining_memory(CPU, hint="lower it"):
        raise full
    assert raised.value.message == "cpu has too little memory: CUDA error: out of memory"
    assert raised.value.hint == "lower it"
    assert raised.value.__cause__ is full
    with pytest.raises(TrainError, match="memory: MemoryError"), explaining_memory(CPU, hint=""):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), explaining_memory(CPU, hint=""):
        raise RuntimeError("shapes cannot be multiplied")


def test_the_peak_of_this_process() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    assert 50 < before < 100_000
    tensor = torch.ones(int(before + 200) * 250_000)  # as many megabytes
    assert peak_memory_mb(CPU) > before + 100
    del tensor
    assert peak_memory_mb(CPU) > before + 100  # a peak stays


def test_the_peak_without_proc_is_that_of_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    with_proc = peak_memory_mb(CPU)
    monkeypatch.setattr("mnft.host.Path.is_file", lambda _: False)
    assert peak_memory_mb(CPU) >= 0.9 * with_proc
    monkeypatch.setattr("sys.platform", "darwin")  # counts bytes
    assert peak_memory_mb(CPU) < with_proc / 500
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "resource":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert peak_memory_mb(CPU) == 0.0


def test_the_peak_of_other_devices_is_not_known() -> None:
    reset_peak_memory(torch.device("mps"))
    assert peak_memory_mb(torch.device("mps")) == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_peak_of_a_gpu() -> None:
    device = torch.device("cuda")
    torch.ones(100_000_000, device=device)
    assert peak_memory_mb(device) >= 400
    reset_peak_memory(device)
    assert peak_memory_mb(device) < 400


@pytest.mark.parametrize(
    ("limit", "largest", "smallest", "tried", "found"),
    [
        (10_000, 256, 8, [256], 256),  # one try where it fits
        (100, 1024, 8, [1024, 512, 256, 128, 64], 64),
        (8, 64, 8, [64, 32, 16, 8], 8),
        (11, 100, 8, [100, 50, 25, 12, 8], 8),
        (10_000, 5, 8, [5], 5),
        (3, 8, 2, [8, 4, 2], 2),
    ],
)
def test_the_largest_batch_that_fits(
    limit: int, largest: int, smallest: int, tried: list[int], found: int
) -> None:
    sizes = []

    def step(size: int) -> None:
        sizes.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert find_batch_size(step, largest=largest, smallest=smallest) == found
    assert sizes == tried


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_automatic_batch_size_is_tried_as_the_training_will_compute(
    monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    """On the meta device, which takes no memory: layout, modes and what is frozen are the run's."""
    sections: dict[str, Any] = {
        "data": {"root": "."},
        "model": {"freeze": 1, "freeze_batchnorm": True},
        "train": {"batch_size": 256, "channels_last": channels_last, "precision": "fp32"},
    }
    config = Config.model_validate(sections)
    model = ModelConfig(name="mobilenetv1_025", pretrained=False)
    built = build_model(model, num_classes=3, img_size=32)
    seen: list[int] = []

    def look(module: Any, arguments: tuple[torch.Tensor]) -> None:
        (images,) = arguments
        seen.append(len(images))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = module.conv_stem.weight
        for tensor in (images, weight):
            assert tensor.is_contiguous(memory_format=layout)
            assert tensor.device.type == "meta"
        assert not weight.requires_grad
        assert module.training
        assert not any(m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d))
        assert all(parameter.grad is None for parameter in module.parameters())
        assert not torch.backends.cudnn.benchmark
        if len(images) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")

    built.model.register_forward_pre_hook(look)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    meta = Machine(torch.device("meta"), Ranks(0, 2), channels_last=channels_last)

    def fit(machine: Machine) -> int:
        return batch_size._fit_batch_size(config, built, machine)

    assert fit(meta) == 2 * 16
    assert seen == [128, 64, 32, 16]
    assert torch.backends.cudnn.benchmark
    assert all(parameter.device.type == "cpu" for parameter in built.model.parameters())
    assert all(parameter.requires_grad for parameter in built.model.parameters())
    seen.clear()
    assert fit(replace(meta, ranks=Ranks(0, 200))) == 256  # refused later
    assert fit(Machine(CPU)) == 256
    assert seen == []


def test_not_even_the_smallest_batch_fits() -> None:
    def step(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainError, match="a batch of 8 images does not fit into memory"):
        find_batch_size(step, largest=64)


def test_other_errors_of_the_step_are_not_hidden() -> None:
    def step(_: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        find_batch_size(step, largest=64)


# Evaluation in parts


@pytest.mark.parametrize(
    ("count", "side", "parts"),
    [(64, 224, [32, 32]), (33, 224, [32, 1]), (64, 64, [64]), (4, 2048, [1, 1, 1, 1]), (0, 8, [0])],
)
def test_evaluation_on_the_cpu_goes_in_parts(count: int, side: int, parts: list[int]) -> None:
    images = torch.zeros(1).expand(count, 3, side, side)
    assert [len(part) for part in split_for_evaluation(images)] == parts


def test_a_gpu_takes_all_images_at_once() -> None:
    images = torch.zeros(64, 3, 224, 224, device="meta")
    assert [len(part) for part in split_for_evaluation(images)] == [64]


@pytest.mark.parametrize("flip", [False, True])
def test_parts_give_the_outputs_of_the_whole(monkeypatch: pytest.MonkeyPatch, flip: bool) -> None:
    monkeypatch.setattr(inference, "_PIXELS", 3 * 16 * 16)
    sizes: list[int] = []

    class Model(torch.nn.Module):
        def get_classifier(self) -> torch.nn.Module:
            return torch.nn.Identity()

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return images[..., 0].mean(2)

        def forward_head(self, values: torch.Tensor, pre_logits: bool) -> torch.Tensor:
            return values

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.forward_features(images)

    images = torch.randn(8, 3, 16, 16)
    batch = Batch(images, torch.arange(8), list(range(8)), [])
    outputs = compute_outputs(Model(), [batch], Machine(CPU), num_outputs=3, flip=flip)
    expected = images[..., 0].mean(2)
    if flip:
        expected = (expected + images[..., -1].mean(2)) / 2
    assert torch.equal(torch.from_numpy(outputs.values), expected)
    assert max(sizes) == 3
    sizes.clear()
    features = compute_features(Model(), [batch], Machine(CPU), dtype=torch.float32)
    assert torch.equal(features.values, images[..., 0].mean(2))
    assert sizes == [3, 3, 2]
