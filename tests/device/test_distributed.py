"""Two processes on the CPU learn what one learns, speak with one voice and end together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from support.images import COLOURS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import Result

from mnft.device.machine import Machine
from mnft.device.ranks import batchnorm, distributed
from mnft.device.ranks.batchnorm import synchronize_batchnorm
from mnft.device.ranks.distributed import Ranks, agree, broadcast, gather, process_group
from mnft.errors import ConfigError, DataError, Interrupted
from mnft.signals import stop_request

Cli = Callable[..., Result]
TIMEOUT_S = 180


def torchrun(
    *args: object, cwd: Path, processes: int = 2, timeout: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher(processes), *map(str, args)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def launcher(processes: int) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run"]
    return [*run, "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={processes}"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def find_rank(launcher: int, rank: str) -> int:
    """The process of a rank below torchrun."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True)
    for pid in listed.stdout.split():
        told = Path("/proc", pid.decode(), "environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in told:
            return int(pid)
    raise AssertionError(listed)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """24 training images in batches of 9, 9 and 6, and 23 val images: nothing halves evenly."""
    root = tmp_path / "images"
    for seed, (split, (name, colour)) in enumerate(product(("train", "val"), COLOURS.items())):
        for index in range(8):
            write_noise(root / split / name / f"{index}.png", colour, seed=100 * seed + index)
    (root / "val" / "red" / "0.png").unlink()
    sections: dict[str, Any] = {
        "data": {"root": str(root), "workers": 0, "img_size": 32},
        # A fresh MobileNetV1 in float32 is no measure: the rounding of another memory format
        # alone moves its gradient by a hundredth (ReLU at outputs of BatchNorm that are 0).
        # It is compared in float64 below.
        "model": {"name": "test_resnet", "pretrained": False},
        "optim": {"name": "sgd", "lr": 0.005},
        "train": {"epochs": 3, "batch_size": 9, "precision": "fp32", "device": "cpu"},
        "run": {"tensorboard": False},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def write_noise(path: Path, colour: tuple[int, int, int], *, seed: int) -> None:
    """Noise with a touch of colour: plain images would leave BatchNorm nearly no variance."""
    noise = np.random.default_rng(seed).normal(128, 70, (32, 32, 3)) + np.array(colour) / 6 - 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


def epochs_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def options(*sets: str) -> list[str]:
    return [part for value in sets for part in ("--set", value)]


def assert_same_curve(one: Path, two: Path, *, rel: float = 1e-3) -> None:
    a, b = epochs_of(one), epochs_of(two)
    assert len(a) == len(b) >= 3
    for own, other in zip(a, b, strict=True):
        for key in ("train_loss", "val_loss", "val_accuracy", "train_accuracy", "lr"):
            assert other[key] == pytest.approx(own[key], rel=rel), key
    assert a[-1]["train_loss"] < a[0]["train_loss"]  # it learned, so the figures are not constant


def test_two_processes_learn_what_one_learns(config: Path, run_cli: Cli) -> None:
    """With BatchNorm in every layer, over uneven shares of the batches."""
    assert run_cli("train", config, *options("run.name=one")).exit_code == 0
    two = torchrun("-m", "mnft", "train", config, *options("run.name=two"), cwd=config.parent)
    assert two.returncode == 0, two.stderr
    runs = config.parent / "runs"
    assert_same_curve(runs / "one", runs / "two")
    weights = [load_file(runs / name / "last" / "model.safetensors") for name in ("one", "two")]
    for key, tensor in weights[0].items():
        other = weights[1][key]
        assert (tensor - other).abs().max() <= 1e-2 * max(tensor.abs().max(), 1e-3), key
    start = json.loads((runs / "two" / "log.jsonl").read_text().splitlines()[0])
    assert start["processes"] == 2
    # One process speaks and writes.
    assert two.stdout == f"{Path('runs/two/best')}\n"
    assert two.stderr.count("epoch 1/3") == 1
    assert two.stderr.count("data     ") == 1
    assert sorted(entry.name for entry in runs.iterdir()) == ["one", "two"]


def test_an_error_ends_both_processes_and_is_said_once(config: Path) -> None:
    (config.parent / "images" / "train" / "red" / "1.png").write_bytes(b"no image")
    started = time.monotonic()
    done = torchrun("-m", "mnft", "train", config, *options("run.name=run"), cwd=config.parent)
    assert done.returncode != 0
    assert time.monotonic() - started < 90
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "1 of 47 files cannot be decoded" in done.stderr
    assert done.stdout == ""
    assert not (config.parent / "runs").exists()


SCRIPT = '''
import copy, sys, warnings
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, timm, torch
from torch import nn
from timm.layers import BatchNormAct2d
from mnft.data.batches.batch import Batch
from mnft.data.batches.samplers import EpochSampler
from mnft.config.schema import Config, ScheduleConfig
from mnft.device.machine import Machine
from mnft.device.ranks import batchnorm
from mnft.device.ranks.batchnorm import synchronize_batchnorm
from mnft.device.compiling import Compiled
from mnft.device.ranks.distributed import (
    broadcast, gather, process_group, sum_over_ranks, without_exchange,
)
from mnft.training.inference import compute_outputs
from mnft.reporter import SILENT
from mnft.tasks import open_task
from mnft.tasks.base import Teacher
from mnft.tasks.outputs import Features
from mnft.tasks.classify.head import CrossEntropy
from mnft.training import build, stages, teacher as teaching
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.epoch.loop import train_one_epoch
from mnft.training.optim import Schedule
from mnft.training.state import TrainState
from mnft.device.ranks.distributed import Ranks
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing
from mnft.signals import leave

warnings.simplefilter("error")
torch.set_num_threads(1)
CPU = torch.device("cpu")
TASK = open_task(("a", "b", "c"))
PLAIN = Config(data={"root": "."}, train={"compile": False})
IMAGES = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def check_batchnorm(ranks, device=CPU):
    """Outputs, gradients and statistics of BatchNorm on the concatenated batch."""
    kinds = [
        (nn.BatchNorm1d(4), (7, 4)),
        (nn.BatchNorm1d(4), (7, 4, 3)),
        (nn.BatchNorm2d(4), (7, 4, 3, 2)),
        (nn.BatchNorm2d(4, affine=False), (7, 4, 3, 2)),
        (nn.BatchNorm2d(4, momentum=None), (7, 4, 3, 2)),
        (nn.BatchNorm2d(4, track_running_stats=False), (7, 4, 3, 2)),
        (BatchNormAct2d(4), (7, 4, 3, 2)),
    ]
    for number, (layer, shape) in enumerate(kinds):
        generator = torch.Generator().manual_seed(number)
        if layer.affine:
            with torch.no_grad():
                layer.weight.copy_(torch.rand(4, generator=generator) + 0.5)
                layer.bias.copy_(torch.randn(4, generator=generator))
        layer = layer.to(device)
        own = synchronize_batchnorm(nn.Sequential(copy.deepcopy(layer)))
        images = torch.randn(shape, generator=generator)
        # A mean far from 0, where E[x^2] - E[x]^2 would lose the variance.
        images += torch.tensor([0.0, 1.0, 50.0, -200.0]).view(1, 4, *[1] * (len(shape) - 2))
        images = images.to(device)
        factor = torch.randn(shape, generator=generator).to(device)
        whole = images.clone().requires_grad_()
        part = slice(0, 3) if ranks.is_main else slice(3, 7)  # uneven
        mine = images[part].clone().requires_grad_()
        for _ in range(2):
            expected, out = layer(whole), own(mine)
        close = dict(rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(out, expected[part], **close)
        (expected * factor).sum().backward()
        (out * factor[part]).sum().backward()
        torch.testing.assert_close(mine.grad, whole.grad[part], **close)
        if layer.affine:
            for name, parameter in layer.named_parameters():
                total = sum_over_ranks(ranks, own[0].get_parameter(name).grad.clone())
                torch.testing.assert_close(total, parameter.grad, **close)
        buffers = [dict(module.named_buffers()) for module in (own[0], layer)]
        torch.testing.assert_close(*buffers, **close)
        assert layer.num_batches_tracked is None or layer.num_batches_tracked == 2
        own.eval(), layer.eval()
        torch.testing.assert_close(own(images), layer(images), **close)


def check_batchnorm_of_gpus(ranks):
    """The path of GPUs, with kernels of the CPU in the place of those that only CUDA has."""
    def expand(values, like):
        return values.view(1, -1, *[1] * (like.ndim - 2))

    def axes(like):
        return [axis for axis in range(like.ndim) if axis != 1]

    def stats(x, eps):
        return x.mean(axes(x)), (x.var(axes(x), correction=0) + eps).rsqrt()

    def gather_stats(x, means, invstds, running_mean, running_var, momentum, eps, counts):
        counts = counts[:, None]
        mean = (means * counts).sum(0) / counts.sum()
        var = ((invstds**-2 - eps + (means - mean) ** 2) * counts).sum(0) / counts.sum()
        if running_mean is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
        return mean, (var + eps).rsqrt()

    def elemt(x, weight, bias, mean, invstd, eps):
        out = (x - expand(mean, x)) * expand(invstd, x)
        return out if weight is None else out * expand(weight, x) + expand(bias, x)

    def backward_reduce(dy, x, mean, invstd, weight, *needed):
        sum_dy = dy.sum(axes(x))
        sum_dy_xmu = (dy * (x - expand(mean, x))).sum(axes(x))
        return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()

    def backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
        assert counts.dtype == torch.int32
        scale = invstd if weight is None else invstd * weight
        slope = invstd**2 * sum_dy_xmu / counts.sum()
        centred = dy - expand(sum_dy / counts.sum(), x) - (x - expand(mean, x)) * expand(slope, x)
        return centred * expand(scale, x)

    # Into torch's dispatcher: a call that does not fit a kernel's signature fails here too.
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in {
        "stats": stats, "gather_stats_with_counts": gather_stats, "elemt": elemt,
        "backward_reduce": backward_reduce, "backward_elemt": backward_elemt,
    }.items():
        library.impl(f"batch_norm_{name}", kernel, "CPU")
    plain = batchnorm._normalize
    batchnorm._normalize = batchnorm._NormalizeOnGpu.apply
    check_batchnorm(ranks)
    batchnorm._normalize = plain
    frozen = synchronize_batchnorm(nn.Sequential(nn.BatchNorm2d(4)))
    frozen[0].weight.requires_grad_(False)
    frozen(torch.randn(3, 4, 2, 2)).sum().backward()
    assert frozen[0].weight.grad is None and frozen[0].bias.grad is not None


def check_wrapping(ranks):
    """No buffers are copied before a pass; gradients are exchanged after the last part alone."""
    model = timm.create_model("lenet5", num_classes=3)
    model.register_buffer("own", torch.zeros(()))
    wrapped, _ = build._build_forward(model, Machine(CPU, ranks), PLAIN, updates=1)
    model.own.fill_(ranks.rank)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(ranks.rank))
    compiled = torch.compile(wrapped, backend="eager")
    really, torch.compile = torch.compile, lambda *_args, **_options: compiled
    twice = Compiled(wrapped)
    torch.compile = really
    for forward in (wrapped, compiled, twice):
        gradients = []
        for last in (False, True):
            with without_exchange(forward, unless=last):
                forward(images).square().sum().backward()
            gradients.append(gather(ranks, model.get_classifier().weight.grad))
        assert not torch.equal(*gradients[0])
        assert torch.equal(*gradients[1])
        model.zero_grad()
    assert model.own == ranks.rank


class Shares:
    """Batches in memory, as data.loaders gives them."""

    in_device_memory = False

    def __init__(self, images, targets, sampler):
        self.images, self.targets, self.sampler = images, targets, sampler

    def __len__(self):
        return len(self.sampler)

    def __iter__(self):
        for keys in self.sampler:
            at = [key.position for key in keys]
            yield Batch(self.images[at], self.targets[at], at, [])


def train(name, ranks, images, targets, **settings):
    """One epoch; the mean loss and the weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).to(images.dtype)
    forward = model
    if ranks.world_size > 1:
        synchronize_batchnorm(model)
        forward, _ = build._build_forward(model, Machine(CPU, ranks), PLAIN, updates=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = Schedule(optimizer, ScheduleConfig(), epochs=1, updates_per_epoch=3, mode="max")
    state = TrainState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    sampler = EpochSampler(
        len(images), 9, seed=4, rank=ranks.rank, world_size=ranks.world_size
    )
    sampler.set_epoch(1)
    options = LoopOptions(
        Machine(CPU, ranks), TASK, settings.get("parts", 1), settings.get("clip")
    )
    result = train_one_epoch(
        state, forward, Shares(images, targets, sampler),
        CrossEntropy(0.1, settings.get("weights")), options, on_step=lambda *_: None,
    )
    return result, model.state_dict(), model


def check_training(ranks):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(25, 3, 32, 32, generator=generator).double()
    targets = torch.randint(3, (25,), generator=generator)
    weights = torch.tensor([0.5, 1.0, 2.0])
    cases = [
        ("lenet5", {}),
        ("lenet5", {"parts": 3, "clip": 0.1, "weights": weights}),
        ("mobilenetv1_025", {"clip": 1.0}),
    ]
    for name, settings in cases:
        one, expected, _ = train(name, Ranks(), images, targets, **settings)
        two, found, model = train(name, ranks, images, targets, **settings)
        loss = one.figures["loss"]
        assert abs(two.figures["loss"] - loss) < 1e-4 * loss, (name, one, two)
        assert two.num_images == one.num_images
        assert two.figures["accuracy"] == one.figures["accuracy"]
        assert one.num_images == 25
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)
    # Parts with BatchNorm wait for each other: uneven shares must be cut alike.
    result, _, _ = train("mobilenetv1_025", ranks, images, targets, parts=3)
    assert result.num_images == 25
    return model


def check_evaluation(ranks, model):
    """Every image once, though 7 is odd, and both processes know all."""
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(7, 3, 32, 32, generator=generator).double()
    at = list(range(ranks.rank, 7, 2))
    batches = [Batch(images[at[i:i + 2]], torch.tensor(at[i:i + 2]), at[i:i + 2], [])
               for i in range(0, len(at), 2)]
    model.train()
    outputs = compute_outputs(model, batches, Machine(CPU, ranks), num_outputs=3)
    assert model.training
    assert outputs.positions.tolist() == outputs.targets.tolist() == list(range(7))
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(outputs.values, expected, rtol=1e-4, atol=1e-5)


def check_messages(ranks):
    assert broadcast(ranks, lambda: f"of rank {ranks.rank}") == "of rank 0"
    assert gather(ranks, ranks.rank * 10) == [0, 10]
    assert sum_over_ranks(ranks, torch.tensor([ranks.rank + 1.0])).item() == 3

    def fail():
        raise DataError("what", hint="how", key="data.root")

    try:
        broadcast(ranks, fail)
    except DataError as error:
        assert (error.message, error.hint, error.key) == ("what", "how", "data.root")
    else:
        raise AssertionError


def check_heads(ranks):
    """Fitted once: features that differ by process give one head, the main process's."""
    def compute(*_args, **_kwargs):
        generator = torch.Generator().manual_seed(7 + ranks.rank)
        targets = torch.arange(30) % 3
        values = torch.randn(30, 84, generator=generator) + targets[:, None]
        return Features(values, targets)

    stages.compute_features = teaching.compute_features = compute
    machine = Machine(CPU, ranks)
    config = Config(data={"root": "."}, distill={"teacher": "lenet5"})
    model = timm.create_model("lenet5", num_classes=3)
    threads = SimpleNamespace(choose=lambda: 1, most=1)
    training = SimpleNamespace(
        options=SimpleNamespace(threads=threads, seed=0, epochs=1),
        state=SimpleNamespace(model=model, ema=None, threads=1), machine=machine, task=TASK,
        config=config, train_view=None, val=None, feature_folder=None,
        contents={"train": [], "val": []},
    )
    stages.train_head(training)
    fitted = model.get_classifier()
    teacher = Teacher(
        timm.create_model("lenet5", num_classes=3), IMAGES, False, None, None, True, "lenet5"
    )
    task = replace(TASK, load_teacher=lambda *_args: teacher)
    _, described = teaching.add_teachers(
        CrossEntropy(0.0, None), config, task, student=IMAGES, views=([], []), machine=machine,
        reporter=SILENT,
    )
    assert "its head fitted" in described[0][1]
    of_teacher = teacher.model.get_classifier().weight.detach()
    assert fitted.weight.shape == of_teacher.shape == (3, 84)
    for weight in (fitted.weight.detach(), of_teacher):
        ours, theirs = gather(ranks, weight)
        assert torch.equal(ours, theirs)


with process_group() as ranks:
    assert (ranks.world_size, ranks.local_world_size) == (2, 2)
    warnings.warn("Grad strides do not match bucket view strides. This may indicate ...")
    check_messages(ranks)
    check_batchnorm(ranks)
    check_batchnorm_of_gpus(ranks)
    check_wrapping(ranks)
    check_evaluation(ranks, check_training(ranks))
    check_heads(ranks)
    sys.stdout.write(f"checked {ranks.rank}\\n")  # one write: the lines must not mix
leave(0)
'''


def test_the_parts_in_two_processes(tmp_path: Path) -> None:
    """BatchNorm, an epoch without BatchNorm, accumulation, evaluation and messages."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = torchrun("script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "checked 0", "checked 1"]
    assert "Grad strides" not in done.stderr


class Transfers(TorchDispatchMode):
    """Takes down what touches two devices; reading a value of a fake tensor is an error itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, torch.Tensor)]
        self.calls += 1
        if {tensor.device.type for tensor in tensors} != {"cuda"}:
            self.found.append(str(func))
        return out


def test_synchronized_batchnorm_never_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake GPU: no copy between host and device, and no value is read."""

    def channels(images: torch.Tensor) -> torch.Tensor:
        return images.new_empty(images.shape[1], dtype=torch.float32)

    shapes: dict[str, Callable[..., Any]] = {
        "stats": lambda x, _eps: (channels(x), channels(x)),
        "gather_stats_with_counts": lambda x, *_: (channels(x), channels(x)),
        "elemt": lambda x, *_: torch.empty_like(x),
        "backward_reduce": lambda _dy, x, *_: tuple(channels(x) for _ in range(4)),
        "backward_elemt": lambda _dy, x, *_: torch.empty_like(x),
    }
    group = SimpleNamespace(all_reduce=lambda _: None, get_world_size=lambda: 2, get_rank=lambda: 1)
    monkeypatch.setattr(batchnorm, "dist", group)
    with (
        torch.library._scoped_library("aten", "IMPL", "Meta") as library,
        FakeTensorMode(),
        torch.device("cuda"),
    ):
        for name, kernel in shapes.items():
            library.impl(f"batch_norm_{name}", kernel)
        layer = synchronize_batchnorm(nn.BatchNorm2d(4))
        images = torch.empty(3, 4, 5, 5, dtype=torch.bfloat16)
        ctx = SimpleNamespace(needs_input_grad=(True,) * 3 + (False,) * 4)
        ctx.save_for_backward = lambda *saved: setattr(ctx, "saved_tensors", saved)
        with Transfers() as transfers:
            out = layer(images)
            running = (layer.running_mean, layer.running_var)
            step = batchnorm._NormalizeOnGpu
            step.forward(ctx, images, layer.weight, layer.bias, *running, 0.1, 1e-5)
            gradients = step.backward(ctx, torch.empty_like(images))
    assert out.dtype == torch.bfloat16
    assert [g.shape for g in gradients[:3]] == [images.shape, (4,), (4,)]
    assert ctx.saved_tensors[0] is images  # in its own precision
    assert transfers.calls > 20
    assert transfers.found == []


GPU_SCRIPT = """
import torch.distributed as dist
from mnft.device.ranks.distributed import Ranks

dist.init_process_group("gloo")  # NCCL refuses two processes on one GPU
ranks = Ranks(dist.get_rank(), 2)
gpu = torch.device("cuda", 0)
check_batchnorm(ranks, gpu)
layer = nn.BatchNorm2d(8).to(gpu)
ours = synchronize_batchnorm(copy.deepcopy(layer))
theirs = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
images = torch.randn(3 + ranks.rank, 8, 9, 9, device=gpu).to(torch.bfloat16)
for layout in (torch.contiguous_format, torch.channels_last):
    results = []
    for module in (ours, theirs):
        own = images.clone(memory_format=layout).requires_grad_()
        out = module(own)
        out.float().square().sum().backward()
        results.append([out, own.grad, module.weight.grad, module.running_var.clone()])
    torch.testing.assert_close(*results)
dist.destroy_process_group()
sys.stdout.write(f"checked {ranks.rank}\\n")
leave(0)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_synchronized_batchnorm_on_a_gpu(tmp_path: Path) -> None:
    """Two processes on one GPU: what one process learns, and what torch's SyncBatchNorm gives."""
    checks = SCRIPT.partition("class Shares")[0]
    (tmp_path / "script.py").write_text(textwrap.dedent(checks + GPU_SCRIPT))
    done = torchrun("script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "checked 0", "checked 1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [
        ("model.name=lenet5",),
        ("model.name=resnet10t", "train.ema_decay=0.9"),
        ("model.freeze=2", "train.sampler=balanced", "train.label_smoothing=0.1"),
        ("data.workers=1", "train.clip_grad=1", "schedule.name=cosine", "schedule.warmup_epochs=1"),
    ],
    ids=lambda sets: sets[0],
)
def test_more_settings(config: Path, run_cli: Cli, sets: tuple[str, ...]) -> None:
    one = run_cli("train", config, *options("run.name=one", *sets))
    assert one.exit_code == 0, one.stderr
    two = torchrun(
        "-m", "mnft", "train", config, *options("run.name=two", *sets), cwd=config.parent
    )
    assert two.returncode == 0, two.stderr
    runs = config.parent / "runs"
    assert_same_curve(runs / "one", runs / "two")


@pytest.mark.slow
def test_images_without_labels_in_two_processes(config: Path, run_cli: Cli) -> None:
    """34 images in batches of 9: the processes have different numbers of labelled ones."""
    for index in range(10):
        colour = (25 * index, 90, 40)
        write_noise(config.parent / "more" / f"{index}.png", colour, seed=900 + index)
    assert run_cli("train", config, *options("run.name=teacher")).exit_code == 0
    sets = options("distill.teacher=./runs/teacher", "distill.images=more")
    assert run_cli("train", config, *sets, *options("run.name=one")).exit_code == 0
    two = torchrun(
        "-m", "mnft", "train", config, *sets, *options("run.name=two"), cwd=config.parent
    )
    assert two.returncode == 0, two.stderr
    runs = config.parent / "runs"
    assert_same_curve(runs / "one", runs / "two")


@pytest.mark.slow
def test_two_processes_resume(config: Path, run_cli: Cli) -> None:
    train = ("-m", "mnft", "train")
    for name, epochs in (("whole", 3), ("cut", 2)):
        sets = options(f"run.name={name}", f"train.epochs={epochs}")
        assert torchrun(*train, config, *sets, cwd=config.parent).returncode == 0
    more = torchrun(*train, "--resume", "runs/cut", *options("train.epochs=3"), cwd=config.parent)
    assert more.returncode == 0, more.stderr
    runs = config.parent / "runs"
    assert_same_curve(runs / "whole", runs / "cut", rel=1e-12)


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read(config: Path) -> None:
    """Only the second process meets it; it says so, and nothing hangs."""
    root = config.parent / "images"
    script = f"""
        import os, sys
        from pathlib import Path
        from mnft.training import fit
        train = fit.train_one_epoch
        def spoil(*args, **kwargs):
            if os.environ["RANK"] == "1":
                for path in Path({str(root)!r}).glob("train/*/*.png"):
                    path.unlink(missing_ok=True)
                return train(*args, **kwargs)
            import time
            time.sleep(600)
        fit.train_one_epoch = spoil
        from mnft.cli.app import main
        main()
    """
    (config.parent / "script.py").write_text(textwrap.dedent(script))
    started = time.monotonic()
    done = torchrun(
        "script.py", "train", config, *options("run.name=x", "data.store=off"), cwd=config.parent
    )
    assert done.returncode != 0
    assert time.monotonic() - started < 90
    said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "stopped: "))]
    assert said[0].startswith("error: rank 1: "), done.stderr
    assert said[1:] == ["error: another process ended (rank 1); its message is above"]
    assert "has the folder changed?" in done.stderr
    assert "Connection closed" not in done.stderr


@pytest.mark.slow
def test_memory_runs_out_in_one_process(config: Path) -> None:
    """Under torchrun, which sends SIGTERM to the other one when that may not know yet."""
    script = """
        import os, torch
        from mnft.training import fit
        train = fit.train_one_epoch
        def spoil(*args, **kwargs):
            if os.environ["RANK"] == "1":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return train(*args, **kwargs)
        fit.train_one_epoch = spoil
        from mnft.cli.app import main
        main()
    """
    (config.parent / "script.py").write_text(textwrap.dedent(script))
    done = torchrun("script.py", "train", config, *options("run.name=x"), cwd=config.parent)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "stopped: "))]
    assert said[0].startswith("error: rank 1: cpu has too little memory: CUDA out of memory")
    assert said[1:] == ["error: another process ended (rank 1); its message is above"]
    assert "[rank" not in done.stderr  # a traceback of one of the two
    root_cause = done.stderr.partition("Root Cause")[2]
    assert re.search(r"rank +: 1 ", root_cause)
    assert re.search(r"traceback : cpu has too little memory", root_cause), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchrun", "rank 0", "rank 1"])
def test_sigterm_stops_both_and_can_be_resumed(config: Path, run_cli: Cli, to: str) -> None:
    command = [*launcher(2), "-m", "mnft", "train", str(config)]
    command += options("run.name=cut", "train.epochs=500")
    with subprocess.Popen(
        command,
        cwd=config.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        state = config.parent / "runs" / "cut" / "resume.pt"
        deadline = time.monotonic() + TIMEOUT_S
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        if to == "torchrun":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(find_rank(process.pid, to[-1]), signal.SIGTERM)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1  # torchrun's own
    said = [line for line in err.decode().splitlines() if line.startswith(("error", "stopped"))]
    assert len(said) == 1, err.decode()
    assert re.match(
        r"stopped: by SIGTERM( to rank 1)? after \d+ epochs?; resume with: mnft", said[0]
    )
    assert b"mnft train --resume runs/cut" in err
    if to != "torchrun":  # which reports no exit codes when it is stopped itself
        assert re.search(r"exitcode +: 143 ", err.decode())
    done = len(epochs_of(state.parent))
    more = run_cli("train", "--resume", state.parent, *options(f"train.epochs={done + 1}"))
    assert more.exit_code == 0, more.stderr


# One process


def test_without_torchrun_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "4"}):
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with process_group() as ranks:
            assert ranks == Ranks()
            assert ranks.is_main
    assert broadcast(Ranks(), lambda: 3) == 3
    assert gather(Ranks(), "x") == ["x"]


def test_a_launcher_that_does_not_say_where_the_others_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigError, match=r"no MASTER_ADDR$"), process_group():
        pytest.fail("joined")


def test_the_place_on_a_machine_where_the_launcher_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    hosts = ["a", "b", "a", "b", "b"]
    monkeypatch.setattr(distributed, "gather", lambda ranks, value: hosts)
    places = [distributed._find_ranks(rank, 5) for rank in range(5)]
    assert [place.local_rank for place in places] == [0, 0, 1, 1, 2]
    assert [place.local_world_size for place in places] == [2, 3, 2, 3, 3]
    monkeypatch.setenv("LOCAL_RANK", "7")
    assert distributed._find_ranks(2, 5) == Ranks(2, 5, 7, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed._find_ranks(2, 5) == Ranks(2, 5, 7, 8)


def test_only_the_first_signal_counts_in_a_group() -> None:
    def send() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with stop_request.handling_signals():
        stop_request.heed_first_only()
        with pytest.raises(Interrupted):
            send()
        send()
    with stop_request.handling_signals():  # a command of its own
        with pytest.raises(Interrupted):
            send()
        with pytest.raises(Interrupted):
            send()
        stop_request.ignore_signals()
        send()


def test_the_first_error_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agree(Ranks(), lambda: 3) == [3]
    errors = [None, DataError("x", hint="h", key="data.root"), DataError("y")]
    monkeypatch.setattr(distributed, "gather", lambda ranks, box: [(0, e) for e in errors])
    with pytest.raises(DataError, match=r"^rank 1: x$") as found:
        agree(Ranks(0, 3), lambda: 0)
    assert (found.value.hint, found.value.key) == ("h", "data.root")
    errors[0] = DataError("of the main process")
    with pytest.raises(DataError, match=r"^of the main process$"):
        agree(Ranks(2, 3), lambda: 0)


def test_cores_are_shared_with_the_processes_of_this_machine_alone(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from mnft.config.load import load_config
    from mnft.preprocessing import Preprocessing
    from mnft.training import inputs

    asked: list[Any] = []
    monkeypatch.setattr(inputs, "choose_workers", lambda *_, **told: asked.append(told) or 0)
    settings, _ = load_config(config, ["train.batch_size=16"])
    shape = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    ranks = Ranks(rank=5, world_size=16, local_rank=1, local_world_size=4)
    inputs.choose_loader_options(settings, shape, Machine(torch.device("cpu"), ranks))
    assert asked[0]["processes"] == 4


def test_a_batch_too_small_for_the_processes(config: Path, run_cli: Cli) -> None:
    import torch

    from mnft.config.load import load_config
    from mnft.data.manifest import Manifest
    from mnft.training.build import build_training

    settings, _ = load_config(config, ["train.batch_size=3"])
    manifest = Manifest(config.parent, ("a", "b"), ())
    with pytest.raises(ConfigError, match="two images for each of 2 processes") as error:
        build_training(settings, manifest, Machine(torch.device("cpu"), Ranks(0, 2)))
    assert error.value.key == "train.batch_size"
