"""Updates on a fake GPU: nothing in them waits for the device or computes with tensors of the CPU.

torch's `FakeTensorMode` follows shapes and devices without a GPU or its driver. Each copy between
host and device goes through the dispatcher, where this test counts it.
"""

from __future__ import annotations

import collections
import traceback
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3, model_ema
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig, OptimConfig, ScheduleConfig
from mnft.data import transforms
from mnft.data.batches.resample import DeviceImages
from mnft.data.batches.samplers import EpochSampler
from mnft.data.batches.stored import StoredBatches
from mnft.data.store.store import StoredImages
from mnft.device.machine import Machine
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.head import CrossEntropy
from mnft.tasks.classify.targets import build_mix
from mnft.training.epoch import loop
from mnft.training.epoch.average import WeightAverage
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.epoch.loop import train_one_epoch
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.state import TrainState

GPU = torch.device("cuda", 0)
SPEC = Preprocessing((3, 64, 64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic", 0.875)
MODEL = "test_efficientnet"
BATCHES = 2
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the GPU, by the function of mnft that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()
        self.on_cpu: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in given}
        if name == "copy_":
            source, target = {args[1].device.type}, {args[0].device.type}
        else:
            source, target = devices, {x.device.type for x in made}
        copied = name in {"copy_", "_to_copy"} and source != target and "cuda" in source | target
        if copied or (name in READS and "cuda" in devices):
            self.found[self._where()] += 1
        elif devices == {"cpu", "cuda"}:
            self.on_cpu[f"{name} {self._where()}"] += 1
        return out

    def _where(self) -> str:
        frames = [f for f in traceback.extract_stack() if "/mnft/" in f.filename]
        return f"{Path(frames[-1].filename).stem}.{frames[-1].name}"


@pytest.fixture
def fake_gpu(monkeypatch):
    """What cannot be had without a driver: generators, the engine of autograd, reading tensors."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(loop, "seed_stream", lambda seed, device: None)
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: [1.0] * len(self), raising=False)
    # What is drawn on the host is drawn for real.
    for owner, name in (
        (StoredBatches, "_plan"),
        (EpochSampler, "__iter__"),
        (v2.MixUp, "make_params"),
        (v2.CutMix, "make_params"),
    ):
        monkeypatch.setattr(owner, name, outside(getattr(owner, name)))
    transforms._constants.cache_clear()
    yield
    transforms._constants.cache_clear()  # of fake tensors


def outside(function):
    def call(*args, **kwargs):
        with unset_fake_temporarily():
            result = function(*args, **kwargs)
            return list(result) if function.__name__ == "__iter__" else result

    def iterate(*args, **kwargs):
        return iter(call(*args, **kwargs))

    return iterate if function.__name__ == "__iter__" else call


def store(folder: Path, count: int) -> StoredImages:
    rng = np.random.default_rng(0)
    sizes = rng.integers(70, 90, (count, 2))
    starts = np.cumsum([0, *(3 * sizes.prod(1))])[:-1]
    path = folder / "pixels.bin"
    path.write_bytes(bytes(int(3 * sizes.prod(1).sum())))
    return StoredImages(path, starts, sizes, 3)


def train_two_epochs(folder: Path, monkeypatch, augment: AugmentConfig, *, learn_bn: bool) -> Waits:
    """The second epoch's waits; constants are copied in the first."""
    count = 8 * BATCHES
    stored = store(folder, count)
    sampler = EpochSampler(count, 8, seed=0)
    mix = build_mix(augment, 5)
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = DeviceImages(stored, GPU)
        with GPU:
            model, copy = (timm.create_model(MODEL, num_classes=5) for _ in range(2))
        monkeypatch.setattr(model_ema, "deepcopy", lambda _model: copy)

        def backward(_loss, *_args, **_kwargs):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        optimizer = build_optimizer(model, OptimConfig(name="adamw", layer_decay=0.75))
        assert optimizer.param_groups[0]["fused"]
        schedule = ScheduleConfig(name="cosine", warmup_epochs=1.0)
        state = TrainState(
            model,
            optimizer,
            Schedule(optimizer, schedule, epochs=10, updates_per_epoch=BATCHES, mode="max"),
            torch.amp.GradScaler("cuda", enabled=False),
            WeightAverage(model, 0.99),
        )
        batches = StoredBatches(
            images,
            [0] * count,
            preprocessing=SPEC,
            sampler=sampler,
            device=GPU,
            channels_last=True,
            augment=augment,
            mix=mix,
        )
        options = LoopOptions(
            Machine(GPU), open_task(tuple("abcde")), clip_grad=1.0, freeze_batchnorm=not learn_bn
        )
        for epoch in (1, 2):
            waits.found.clear()
            waits.on_cpu.clear()
            sampler.set_epoch(epoch)
            with waits:
                result = train_one_epoch(
                    state,
                    model,
                    batches,
                    CrossEntropy(0.1, None),
                    options,
                    on_step=lambda *_: None,
                    seed=1,
                )
            assert result.num_images == count
            assert result.waited is None
    return waits


CASES = {
    "plain": AugmentConfig(),
    "colours and erasing": AugmentConfig(vflip=0.5, color_jitter=0.4, random_erasing=0.25),
    "mixing": AugmentConfig(mixup=0.2),
    "pasting": AugmentConfig(cutmix=1.0),
}


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("learn_bn", [False, True], ids=["fixed", "learning"])
@pytest.mark.parametrize("case", CASES)
def test_no_update_waits_for_the_device(case, learn_bn, tmp_path, monkeypatch):
    """One copy up for the epoch's choices, one for the sums that it begins with; none in a step."""
    waits = train_two_epochs(tmp_path, monkeypatch, CASES[case], learn_bn=learn_bn)
    assert waits.found == {"stored._upload": 1, "loop.__init__": 1}
    assert not waits.on_cpu


@pytest.mark.usefixtures("fake_gpu")
def test_a_wait_is_seen(tmp_path, monkeypatch):
    """The counting itself: timm's own average and constants that are copied again."""
    monkeypatch.setattr(transforms, "_constants", transforms._constants.__wrapped__, raising=True)
    transforms._constants.cache_clear = lambda: None
    waits = train_two_epochs(tmp_path, monkeypatch, AugmentConfig(), learn_bn=False)
    assert waits.found["transforms._constants"] == 2 * BATCHES


def test_the_average_is_that_of_timm_to_the_bit():
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3)
    model.blocks[0].eval().requires_grad_(False)
    ours, theirs = WeightAverage(model, 0.9), ModelEmaV3(model, decay=0.9, use_warmup=True)
    for step in range(1, 13):
        if step % 4 == 1:
            ours.begin_epoch(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
            model(torch.randn(2, 3, 64, 64))  # changes the statistics of BatchNorm
        ours.update(step)
        theirs.update(model, step=step)
    ours.end_epoch()
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], value), name
    assert not torch.equal(ours.module.conv_stem.weight, model.conv_stem.weight)
