"""Evaluation batches: from the store and from files the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.images import MakeFolder

from mnft.config.evaluation import EvalConfig
from mnft.config.schema import Config
from mnft.data.batches.stored import StoredBatches
from mnft.data.batches.workers import LoadedBatches
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.labels import RULES
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.inputs import open_inputs

MACHINE = Machine(torch.device("cpu"), channels_last=False)
PREPROCESSING = Preprocessing((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), "bilinear", 0.875)


@pytest.fixture
def given(make_folder: MakeFolder, tmp_path: Path) -> tuple[Any, ...]:
    """Root, samples, targets, preprocessing and machine; a training has stored the images."""
    root, store = make_folder(splits=("train", "val"), per_class=5), str(tmp_path / "cache")
    config = Config.model_validate({"data": {"root": str(root), "store": store, "workers": 0}})
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None)
    open_inputs(config, manifest, PREPROCESSING, MACHINE)
    samples = manifest.split("val")
    targets = open_task(manifest.labels).encode(samples)
    return manifest.root, samples, targets, PREPROCESSING, MACHINE


def test_the_store_and_the_files_give_the_same_batches(
    given: tuple[Any, ...], tmp_path: Path
) -> None:
    options = EvalOptions(batch_size=4, workers=0, store=str(tmp_path / "cache"))
    stored = open_eval_batches(*given, options=options)
    decoded = open_eval_batches(*given, options=EvalOptions(batch_size=4, workers=0))
    assert isinstance(stored, StoredBatches)
    assert isinstance(decoded, LoadedBatches)
    pairs = list(zip(stored, decoded, strict=True))
    assert [len(ours.images) for ours, _ in pairs] == [4, 4, 4, 3]
    for ours, theirs in pairs:
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.positions == theirs.positions
        assert ours.images.is_contiguous()
    assert [target for ours, _ in pairs for target in ours.targets.tolist()] == given[2]


def test_images_that_are_not_stored_are_decoded(given: tuple[Any, ...], tmp_path: Path) -> None:
    """Another folder of the cache; evaluation adds nothing to it."""
    options = EvalOptions(workers=0, store=str(tmp_path / "other"))
    assert isinstance(open_eval_batches(*given, options=options), LoadedBatches)
    assert not list((tmp_path / "other").rglob("*.bin"))


def test_the_batch_size_is_that_of_the_options_or_else_of_the_config(
    given: tuple[Any, ...],
) -> None:
    config = EvalConfig(batch_size=5)
    batches = open_eval_batches(*given, config=config, options=EvalOptions(workers=0))
    assert [len(batch.images) for batch in batches] == [5, 5, 5]
    batches = open_eval_batches(*given, config=config, options=EvalOptions(8, workers=0))
    assert [len(batch.images) for batch in batches] == [8, 7]
