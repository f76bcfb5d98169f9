"""Device, precision and seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mnft.engine import device as module
from mnft.engine.device import autocast, resolve_device, resolve_precision, seed_everything
from mnft.errors import ConfigError

CPU = torch.device("cpu")


def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    no_accelerator(monkeypatch)
    assert resolve_device("auto") == CPU
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    no_accelerator(monkeypatch)
    with pytest.raises(ConfigError, match=f"no device '{name}'") as error:
        resolve_device(name)
    assert error.value.key == "train.device"
    assert "mnft doctor" in str(error.value.hint)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "CPU "])
def test_an_unknown_device(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda") as error:
        resolve_device(name)
    assert error.value.key == "train.device"


@pytest.mark.parametrize("name", ["meta", "xpu"])
def test_devices_of_torch_that_are_none_for_training(name: str) -> None:
    with pytest.raises(ConfigError, match="no device"):
        resolve_device(name)


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert resolve_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert resolve_device("cuda", local_rank=0) == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu", local_rank=1) == CPU
    with pytest.raises(ConfigError, match="cuda:2"):
        resolve_device("cuda:2")
    with pytest.raises(ConfigError, match="process 3 of this machine finds 2 GPUs"):
        resolve_device("auto", local_rank=2)


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU") as error:
        resolve_precision("fp16", CPU, key="eval.precision")
    assert error.value.key == "eval.precision"


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_the_cpu_is_bf16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: native)
    assert resolve_precision("auto", CPU, key="train.precision") == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_precision("auto", torch.device("cuda"), key="train.precision") == dtype


def test_what_is_written_is_taken() -> None:
    assert resolve_precision("fp32", torch.device("cuda"), key="k") == torch.float32
    assert resolve_precision("bf16", CPU, key="k") == torch.bfloat16
    assert resolve_precision("fp16", torch.device("cuda"), key="k") == torch.float16


def test_autocast_changes_nothing_in_fp32_and_computes_in_bf16() -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, torch.float32):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16


def test_seeding_covers_python_numpy_and_torch() -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    large = 2**63 - 1
    assert draw(large) == draw(large)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))
