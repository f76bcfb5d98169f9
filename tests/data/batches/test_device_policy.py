"""`augment.device` in batches: from seeds only, the same with and without the store and workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training import (
    Trainer,
    assert_same_run,
    epochs_of,
    interrupt_in_epoch,
)

from mnft.config.schema import AugmentConfig, Config
from mnft.data.batches.raw import vary
from mnft.data.batches.resample import DeviceImages
from mnft.data.batches.samplers import Key
from mnft.data.batches.stored import StoredBatches
from mnft.data.batches.workers import LoadedBatches
from mnft.data.corruptions import vary_as_device
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.labels import RULES
from mnft.training import inputs as inputs_module
from mnft.training.inputs import Loaders, open_inputs

CPU = torch.device("cpu")
SPEC = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def pixels_of(count: int, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, channels), dtype=np.uint8) for _ in range(count)]


def test_images_are_varied_after_the_crop_by_seeds_of_their_own() -> None:
    pixels, keys = pixels_of(12), [Key(i, 100 + i) for i in range(12)]
    plain = vary(pixels, keys, (32, 32), AugmentConfig(), SPEC)
    varied = vary(pixels, keys, (32, 32), AugmentConfig(device=0.5), SPEC)
    changed = [not torch.equal(a, b) for a, b in zip(plain, varied, strict=True)]
    assert 2 <= sum(changed) <= 10  # and the others are what they were
    for number, (before, after) in enumerate(zip(plain, varied, strict=True)):
        rows = np.ascontiguousarray(before.permute(1, 2, 0).numpy())
        expected = vary_as_device(rows, 0.5, 100 + number)
        assert np.array_equal(after.permute(1, 2, 0).numpy(), expected)


def test_neither_the_batch_nor_threads_matter() -> None:
    pixels, keys = pixels_of(12), [Key(i, 100 + i) for i in range(12)]
    augment = AugmentConfig(device=1.0, color_jitter=0.4)
    whole = vary(pixels, keys, (32, 32), augment, SPEC)
    with ThreadPoolExecutor(3) as pool:
        part = vary(pixels[5:9], keys[5:9], (32, 32), augment, SPEC, pool)
    assert torch.equal(whole[5:9], part)
    assert whole.stride() == vary(pixels, keys, (32, 32), AugmentConfig(), SPEC).stride()


def test_grey_images() -> None:
    spec = Preprocessing((1, 32, 32), (0.5,), (0.5,), "bilinear", 1.0)
    keys = [Key(i, i) for i in range(8)]
    varied = vary(pixels_of(8, 1), keys, (32, 32), AugmentConfig(device=1.0), spec)
    assert varied.shape == (8, 1, 32, 32)


@pytest.fixture
def load(make_folder: Any, tmp_path: Path) -> Any:
    """A function (store, workers, augment) that gives the training batches of an epoch."""
    root = make_folder(per_class=10)

    def make(store: str = "cache", workers: int = 0, **augment: Any) -> tuple[Any, list[Any]]:
        place = "off" if store == "off" else str(tmp_path / store)
        config = Config.model_validate(
            {
                "data": {"root": str(root), "store": place, "workers": workers},
                "augment": augment,
                "train": {"batch_size": 8},
            }
        )
        manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None)
        inputs = open_inputs(config, manifest, SPEC, Machine(CPU))
        task = open_task(manifest.labels)
        batches = Loaders(config, manifest, SPEC, inputs, Machine(CPU), task).train()
        batches.sampler.set_epoch(2)
        return batches, list(batches)

    return make


@pytest.mark.parametrize("policy", ["none", "trivial_augment"])
@pytest.mark.parametrize(("store", "workers"), [("off", 0), ("cache", 2)])
def test_the_store_and_workers_change_nothing(
    load: Any, policy: str, store: str, workers: int
) -> None:
    first = load(device=0.8, policy=policy)[1]
    others = load(store, workers, device=0.8, policy=policy)[1]
    plain = load(policy=policy)[1]
    assert len(first) == len(others) >= 2
    for ours, theirs in zip(first, others, strict=True):
        assert torch.equal(ours.images, theirs.images)
    assert not torch.equal(first[0].images, plain[0].images)


def test_a_gpu_leaves_it_to_loading_processes(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is decided: there is no GPU here."""
    monkeypatch.setattr(inputs_module, "fits_on_device", lambda *_: True)
    placed = load()[0]
    assert isinstance(placed, StoredBatches)
    assert isinstance(placed._images, DeviceImages)
    kept = load(device=0.5)[0]
    assert not isinstance(getattr(kept, "_images", None), DeviceImages)
    assert isinstance(kept, StoredBatches | LoadedBatches)


def test_resumed_equals_uninterrupted(train: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ("augment.device=0.7", "train.epochs=4")
    assert train(*sets, name="whole").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3)
        assert train(*sets, name="cut").exit_code == 130
    resumed = train.resume("cut")
    assert resumed.exit_code == 0, resumed.stderr
    assert_same_run(train.run("whole"), train.run("cut"))
    assert train("train.epochs=4", name="plain").exit_code == 0
    assert epochs_of(train.run("plain")) != epochs_of(train.run("whole"))


@pytest.mark.parametrize("value", ["1.5", "-0.1", "cpu"])
def test_a_probability_is_expected(train: Trainer, value: str) -> None:
    refused = train(f"augment.device={value}")
    assert refused.exit_code == 2
    assert "augment.device: found" in refused.stderr
    assert "expected a number from 0 to 1" in refused.stderr
