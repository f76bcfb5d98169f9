"""What a GPU must do: the CPU's figures, no waits, messages, equal runs.

`pytest -m gpu` runs these on a GPU, or says that there is none. Most of them run on the CPU too, in
the default suite, so that what they do is known to work before there is a GPU.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MakeFolder
from safetensors.torch import load_file
from typer.testing import Result

from mnft.engine import loop

Cli = Callable[..., Result]
BATCH = 16


def require_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device: torch.cuda.is_available() is False")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        require_cuda()
    return str(request.param)


class Trainer:
    """Runs `mnft train` on three plain classes, with all that the recipe does for real ones."""

    def __init__(self, run_cli: Cli, folder: Path, root: Path, device: str) -> None:
        self.run_cli = run_cli
        self.folder = folder
        self.device = device
        self.config = folder / "small.yaml"
        sections: dict[str, Any] = {
            "data": {"root": str(root), "workers": 0, "img_size": 32},
            "model": {"name": "test_efficientnet", "pretrained": False, "freeze_batchnorm": True},
            "optim": {"name": "adamw", "layer_decay": 0.75},
            "train": {"epochs": 3, "batch_size": BATCH, "device": device, "ema_decay": 0.9},
            "augment": {"color_jitter": 0.4, "random_erasing": 0.25},
            "run": {"tensorboard": False},
        }
        self.config.write_text(yaml.safe_dump(sections))

    def __call__(self, name: str, *sets: str) -> Result:
        options = [part for value in (f"run.name={name}", *sets) for part in ("--set", value)]
        return self.run_cli("train", self.config, *options)

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def epochs(self, name: str) -> list[dict[str, Any]]:
        lines = (self.path(name) / "log.jsonl").read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["event"] == "epoch"]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.path(name) / "last" / "model.safetensors")


@pytest.fixture
def train(run_cli: Cli, make_folder: MakeFolder, tmp_path: Path, device: str) -> Trainer:
    """On 48 training and 48 val images."""
    root = make_folder(splits=("train", "val"), per_class=BATCH)
    return Trainer(run_cli, tmp_path, root, device)


def test_a_device_computes_what_the_cpu_does(
    device: str, gpu_script: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pixels, colours, batches, logits, gradients, the head and evaluation: equal.py."""
    code = gpu_script("equal").main(["--tiny", "--device", device])
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.count("\nok ") >= 15, out


class Watched:
    """The batches of an epoch; from the first update to the last a wait for the GPU is an error."""

    def __init__(self, batches: Any, *, on_gpu: bool) -> None:
        self.sampler = batches.sampler
        self.in_device_memory = batches.in_device_memory
        self._batches = batches
        self._on_gpu = on_gpu

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        first = next(batches)  # the epoch's choices go up
        self._set_mode("error")
        try:
            yield first
            yield from batches
        finally:
            self._set_mode("default")

    def _set_mode(self, mode: str) -> None:
        if self._on_gpu:
            torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_no_update_waits_for_the_device(
    train: Trainer, mix: str, monkeypatch: pytest.MonkeyPatch, gpu_script: Callable[[str], Any]
) -> None:
    """In torch's own judgement; on the CPU the updates are run, and nothing can wait."""
    on_gpu = train.device == "cuda"
    # Reports, of which there are 4 a second, wait.
    monkeypatch.setattr(loop, "_REPORT_INTERVAL_S", float("inf"))
    sets = [f"augment.{mix}=0.5", "train.precision=bf16", "train.clip_grad=1.0"]
    parts = gpu_script("parts")
    _, training = parts.build(train.config, sets, parts.find_device(train.device))
    for epoch in (1, 2):  # in the first one constants go up and cuDNN tries its algorithms
        training.train.sampler.set_epoch(epoch)
        batches = Watched(training.train, on_gpu=on_gpu and epoch == 2)
        result = loop.train_one_epoch(
            training.state,
            training.forward,
            batches,
            training.criterion,
            training.options.loop,
            on_step=lambda *_: None,
            seed=epoch,
        )
    assert result.num_images == 48
    assert training.train.in_device_memory == on_gpu


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_torch_sees_a_wait() -> None:
    require_cuda()
    value = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            value.item()
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            torch.tensor(1.0, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def _deterministic() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_a_stopped_run_ends_as_one_that_never_stopped(
    train: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under train.deterministic, bit for bit; stops.py does the same with real processes."""
    sets = ["train.deterministic=true", "augment.mixup=0.2"]
    updates = 0
    update = loop._update

    def signalled(*args: Any) -> None:
        nonlocal updates
        update(*args)
        updates += 1
        if updates == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train("whole", *sets).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", signalled)
        stopped = train("cut", *sets)
    assert stopped.exit_code == 143
    assert "after 1 epoch and 2 updates of the next" in stopped.stderr
    assert train.run_cli("train", "--resume", train.path("cut")).exit_code == 0
    whole, cut = train.weights("whole"), train.weights("cut")
    assert whole.keys() == cut.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name]), name


def test_a_model_answers_alike_on_a_device_and_on_the_cpu(train: Trainer) -> None:
    """What it learned there, and what `mnft eval` says of it on both."""
    plain = ["train.precision=fp32", "train.ema_decay=null"]
    assert train("there", *plain).exit_code == 0
    assert train("here", *plain, "train.device=cpu").exit_code == 0
    for there, here in zip(train.epochs("there"), train.epochs("here"), strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=0.05)
        assert there["val_loss"] == pytest.approx(here["val_loss"], rel=0.05)
    answers = []
    for name in ("cpu", train.device if train.device == "cpu" else "cuda:0"):
        output = train.folder / f"eval-{name.partition(':')[0]}"
        run = ["eval", "--ckpt", train.path("there"), "--device", name, "-o", output]
        assert train.run_cli(*run).exit_code == 0
        with (output / "predictions.csv").open(newline="") as file:
            answers.append(list(csv.DictReader(file)))
    pairs = list(zip(*answers, strict=True))
    assert len(pairs) == 48
    assert sum(ours["prediction"] != theirs["prediction"] for ours, theirs in pairs) <= 1
    for ours, theirs in pairs:
        assert float(ours["confidence"]) == pytest.approx(float(theirs["confidence"]), abs=0.02)


class SmallMemory:
    """Lets a share of the memory of a training be all that there is, on the CPU by pretending."""

    def __init__(self, train: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._train = train
        self._monkeypatch = monkeypatch
        self.sets = ["train.batch_size=48"]
        if train.device == "cuda":
            # Activations must be most of it: allocators take blocks of 20 MB.
            self.sets += ["model.name=mobilenetv2_050", "data.img_size=224"]

    def limit(self, share: float) -> None:
        if self._train.device == "cpu":
            forward = loop._forward

            def fail(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
                if len(images) > 48 * share:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
                return forward(model, images)

            self._monkeypatch.setattr(loop, "_forward", fail)
            return
        self._free()
        before = torch.cuda.memory_allocated()
        assert self._train("free", *self.sets).exit_code == 0
        # In the last epoch cuDNN tries nothing any more.
        peak = 1e6 * self._train.epochs("free")[-1]["peak_memory_mb"]
        self._free()
        wanted = before + share * (peak - before)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(wanted / total)

    def end(self) -> None:
        if self._train.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            self._free()

    def _free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def small_memory(train: Trainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallMemory]:
    memory = SmallMemory(train, monkeypatch)
    yield memory
    memory.end()


def test_a_batch_that_does_not_fit_is_computed_in_parts(
    train: Trainer, small_memory: SmallMemory, caplog: pytest.LogCaptureFixture
) -> None:
    small_memory.limit(0.6)
    result = train("parts", *small_memory.sets)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"batches of 48 are now computed in \d+ parts", caplog.text)
    assert len(train.epochs("parts")) == 3


def test_too_little_memory_is_one_message(train: Trainer, small_memory: SmallMemory) -> None:
    small_memory.limit(0.01)
    result = train("failed", *small_memory.sets, "train.accumulation_steps=48")
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1
    assert "too little memory" in result.stderr
    assert "hint: " in result.stderr


@pytest.mark.gpu
def test_the_doctor_knows_the_gpu(run_cli: Cli) -> None:
    require_cuda()
    facts = json.loads(run_cli("doctor", "--json").stdout)
    assert facts["device"] == "cuda:0"
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert torch.cuda.get_device_name(0) in str(facts["gpus"][0])
    native = torch.cuda.get_device_capability(0)[0] >= 8 or torch.version.hip is not None
    assert facts["precision"] == ("bfloat16" if native else "float16")
