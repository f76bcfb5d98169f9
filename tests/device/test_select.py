"""Device, precision and seeds."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from mnft.device import gpu_driver
from mnft.device import select as module
from mnft.device.gpu_driver import explain_missing_gpu, read_driver_version
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import (
    autocast,
    benchmark_cudnn,
    keep_freed_memory,
    make_deterministic,
    resolve_device,
    resolve_precision,
    seed_everything,
)
from mnft.errors import ConfigError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.device]:
    """The devices that are made the current one."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


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


def test_the_gpu_that_is_named_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = gpus(monkeypatch, 2)
    for name, number in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        assert resolve_device(name) == torch.device("cuda", number)
    assert taken == [torch.device("cuda", number) for number in (0, 0, 1)]
    with pytest.raises(ConfigError, match="cuda:2"):
        resolve_device("cuda:2")


def test_the_cpu_of_a_machine_with_gpus_touches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: pytest.fail("touched"))
    monkeypatch.setattr(module, "agree", lambda ranks, compute: [compute(), compute()])
    assert resolve_device("cpu", Ranks(1, 2, 1, 2)) == CPU
    assert taken == []


Gpus = list[tuple[str, list[str]]]


def resolve_together(
    monkeypatch: pytest.MonkeyPatch, machines: Gpus, name: str = "auto"
) -> list[torch.device]:
    """What each process takes.

    Args:
        machines: for each process its machine, and the identities of the GPUs that it sees.
        name: of `train.device`.
    """
    hosts = [host for host, _ in machines]

    def become(rank: int) -> Ranks:
        host, seen = machines[rank]
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        properties = [SimpleNamespace(uuid=uuid) for uuid in seen]
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: properties[device.index]
        )
        gpus(monkeypatch, len(seen))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen))
        return Ranks(rank, len(hosts), hosts[:rank].count(host), hosts.count(host))

    def agree(_ranks: Ranks, _compute: object) -> list[Any]:
        return [module._find_place(name, become(rank)) for rank in range(len(hosts))]

    monkeypatch.setattr(module, "agree", agree)
    return [resolve_device(name, become(rank)) for rank in range(len(hosts))]


@pytest.mark.parametrize(
    ("machines", "numbers"),
    [
        ([("a", ["A", "B"])] * 2, [0, 1]),  # torchrun
        ([("a", ["A"]), ("a", ["B"])], [0, 0]),  # srun --gpus-per-task=1
        ([("a", ["A", "B"])] * 2 + [("b", ["A", "B"])] * 2, [0, 1, 0, 1]),
        ([("a", ["A", "B"])] * 2 + [("a", ["C", "D"])] * 2, [0, 1, 0, 1]),
    ],
)
def test_each_process_takes_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, machines: Gpus, numbers: list[int]
) -> None:
    found = resolve_together(monkeypatch, machines)
    assert found == [torch.device("cuda", number) for number in numbers]


@pytest.mark.parametrize(
    ("machines", "words", "hint"),
    [
        ([("a", ["A"])] * 2, "2 processes on a find 1 GPU$", "--nproc-per-node 1$"),
        ([("a", ["A", "B"])] * 3, "3 processes on a find 2 GPUs$", "--nproc-per-node 2$"),
        ([("b", ["A"])] + [("a", ["A"])] * 2, "2 processes on a find 1 GPU$", "per-node 1$"),
        (
            [("a", ["A"]), ("b", [])],
            r"rank 0 \(on a\) .* on cuda, rank 1 \(on b\) on cpu",
            "doctor",
        ),
    ],
)
def test_processes_without_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, machines: Gpus, words: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        resolve_together(monkeypatch, machines)
    assert error.value.key == "train.device"
    assert re.search(hint, str(error.value.hint))


def test_several_processes_cannot_have_one_gpu_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="'cuda:0' for 2 processes, which need a GPU each"):
        resolve_together(monkeypatch, [("a", ["A", "B"])] * 2, "cuda:0")


# A driver that torch cannot use

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/"
)


@pytest.fixture
def _driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose driver is for CUDA 12.2, with a torch for CUDA 13.2."""
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Dec 23 2023\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    )
    monkeypatch.setattr(gpu_driver, "_VERSION_FILE", path)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    no_accelerator(monkeypatch)
    refuse(monkeypatch, RuntimeError(TOO_OLD))


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.mark.usefixtures("_driver")
def test_a_driver_that_is_too_old_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_device("auto") == CPU
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    words = record.getMessage()
    for part in ("535.161.08", "CUDA 12.2", "CUDA 13.2", "CUDA 12 build"):
        assert part in words
    assert "https://pytorch.org/get-started" in words
    with pytest.raises(ConfigError, match="no device 'cuda'") as error:
        resolve_device("cuda")
    assert "too old" in str(error.value.hint)


@pytest.mark.usefixtures("_driver")
def test_one_process_of_a_machine_speaks_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "agree", lambda ranks, compute: [compute(), compute()])
    resolve_device("auto", Ranks(1, 2, 1, 2))
    assert not caplog.records
    resolve_device("auto", Ranks(0, 2, 0, 2))
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("_driver")
def test_who_wants_the_cpu_hears_nothing_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_device("cpu")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        resolve_device("auto")
    assert not caplog.records


@pytest.mark.usefixtures("_driver")
def test_other_reasons_why_no_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, RuntimeError("Error 802: system not yet initialized\nmore"))
    assert "finds no GPU: Error 802: system not yet initialized (torch" in str(
        explain_missing_gpu()
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(explain_missing_gpu())
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert explain_missing_gpu() is None


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 570.86.15", "570.86.15"),
        ("echo NVIDIA-SMI has failed because it cannot reach the NVIDIA driver", None),
    ],
)
def test_the_driver_by_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, version: str | None
) -> None:
    """As in WSL; and after an update of the kernel, when the driver is not loaded."""
    monkeypatch.setattr(gpu_driver, "_VERSION_FILE", tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    refuse(monkeypatch, RuntimeError("Found no NVIDIA driver on your system."))
    assert read_driver_version() == version
    there = f"an NVIDIA driver ({version})" if version else "nvidia-smi"
    assert str(explain_missing_gpu()).startswith(f"there is {there}, but torch")
    command.unlink()
    if shutil.which("nvidia-smi") is None:
        assert read_driver_version() is explain_missing_gpu() is None


@pytest.mark.usefixtures("_driver")
def test_doctor_explains_the_driver(
    monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Result]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as the driver counts
    facts = json.loads(run_cli("doctor", "--json").stdout)
    assert (facts["device"], facts["gpus"], facts["gpu_memory_gb"]) == ("cpu", [], [])
    assert (facts["nvidia_driver"], facts["torch_cuda"]) == ("535.161.08", "13.2")
    assert any("535.161.08) is too old" in problem for problem in facts["problems"])
    assert run_cli("doctor").stderr.count("is too old") == 1


def test_doctor_shows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Result]
) -> None:
    gpus(monkeypatch, 1)
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92600)
    facts = json.loads(run_cli("doctor", "--json").stdout)
    assert facts["device"] == "cuda:0"
    assert (facts["gpus"], facts["gpu_memory_gb"]) == (["NVIDIA H200"], [150.0])
    assert (facts["cudnn"], facts["precision"]) == ("9.26.0", "bfloat16")


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


def test_auto_on_a_gpu_asks_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    capability = {0: (7, 5), 1: (8, 0), 2: (9, 0)}
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability[device.index]
    )
    wanted = {0: torch.float16, 1: torch.bfloat16, 2: torch.bfloat16}
    for number, dtype in wanted.items():
        assert resolve_precision("auto", torch.device("cuda", number), key="k") == dtype
    monkeypatch.setattr(torch.version, "hip", "7.0")  # whose capabilities count otherwise
    assert resolve_precision("auto", torch.device("cuda", 0), key="k") == torch.bfloat16


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
from mnft.device.select import keep_freed_memory
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
def test_cudnn_tries_its_algorithms_for_long_trainings_on_a_gpu() -> None:
    torch.backends.cudnn.benchmark = False
    benchmark_cudnn(CPU, updates=10_000)
    benchmark_cudnn(CUDA, updates=500)
    assert not torch.backends.cudnn.benchmark
    benchmark_cudnn(CUDA, updates=5_000)
    assert torch.backends.cudnn.benchmark
    make_deterministic(CUDA)
    benchmark_cudnn(CUDA, updates=5_000)
    assert not torch.backends.cudnn.benchmark
