"""Device, precision and seeds."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mnft.engine import device as module
from mnft.engine.device import (
    autocast,
    keep_freed_memory,
    make_deterministic,
    resolve_device,
    resolve_precision,
    seed_everything,
    tune,
)
from mnft.errors import ConfigError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


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


def test_auto_on_the_cpu_leaves_small_images_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    for img_size, dtype in ((32, torch.float32), (63, torch.float32), (64, torch.bfloat16)):
        assert resolve_precision("auto", CPU, key="k", img_size=img_size) == dtype
    assert resolve_precision("bf16", CPU, key="k", img_size=32) == torch.bfloat16
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    assert resolve_precision("auto", CPU, key="k", img_size=224) == torch.float32


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


# Memory of the C library


def mallopt_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What `keep_freed_memory` asks glibc for, with none of its environment variables set."""
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    return calls


def test_freed_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = mallopt_calls(monkeypatch)
    keep_freed_memory()
    assert calls == [(-4, 0), (-1, 2**31 - 1)]


@pytest.mark.parametrize(
    "name",
    ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"],
)
def test_the_users_settings_of_the_c_library_stay(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls = mallopt_calls(monkeypatch)
    monkeypatch.setenv(name, "1")
    keep_freed_memory()
    assert calls == []


def test_other_c_libraries_and_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mallopt_calls(monkeypatch)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # musl
    keep_freed_memory()

    def refuse(_: object) -> Any:
        raise OSError("dynamic loading not supported")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed_memory()
    calls = mallopt_calls(monkeypatch)
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        keep_freed_memory()
    assert calls == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_a_freed_tensor_stays_with_the_process() -> None:
    code = """
import torch
from pathlib import Path
from mnft.engine.device import keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
keep_freed_memory()
before = resident()
tensor = torch.ones(50_000_000)
del tensor
print(resident() - before)
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
    )
    assert int(run.stdout) > 150_000_000


# Determinism


@pytest.fixture
def _torch_settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put back what the tests of this section change."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_torch_settings")
def test_deterministic_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    make_deterministic(CPU)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic(CUDA)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_deterministic(CUDA)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("_torch_settings")
def test_cudnn_tries_its_algorithms_on_a_gpu() -> None:
    tune(CPU)
    assert not torch.backends.cudnn.benchmark
    tune(CUDA)
    assert torch.backends.cudnn.benchmark
