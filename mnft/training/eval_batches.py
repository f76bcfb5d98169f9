"""Batches of images to evaluate a model on, from files or from the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnft.config.evaluation import EvalConfig
from mnft.data.batches.batch import Batches, LoaderOptions
from mnft.data.batches.raw import DecodedImages
from mnft.data.batches.samplers import EvalSampler
from mnft.data.batches.stored import StoredBatches
from mnft.data.batches.workers import LoadedBatches, choose_workers
from mnft.data.manifest import Sample
from mnft.data.store.cache import choose_cache_folder
from mnft.data.store.geometry import EvalGeometry
from mnft.data.store.store import Store, StoreUnavailable
from mnft.device.machine import Machine
from mnft.preprocessing import Preprocessing
from mnft.training.inference import choose_eval_batch_size


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """How evaluation batches are loaded.

    Attributes:
        batch_size: number of images at once; None takes that of the config's `eval` section.
        workers: number of processes that decode; None chooses it from the cores.
        store: value of `data.store`; images that a training has stored are not decoded again.
        allow_bad: whether images that cannot be decoded are named in the batches instead of
            raising an error.
    """

    batch_size: int | None = None
    workers: int | None = None
    store: str = "off"
    allow_bad: bool = False


def open_eval_batches(
    root: Path,
    samples: Sequence[Sample],
    targets: Sequence[int],
    preprocessing: Preprocessing,
    machine: Machine,
    *,
    config: EvalConfig | None = None,
    options: EvalOptions | None = None,
) -> Batches:
    """Build batches that hold each image once, in order, as evaluation sees it.

    Args:
        root: folder that the samples' paths are relative to.
        samples: the images.
        targets: target of each image; -1 if it has none.
        preprocessing: preprocessing of the model's input.
        machine: where the batches go.
        config: the `eval` section, for the batch size.
        options: how they are loaded.
    """
    options, config = options or EvalOptions(), config or EvalConfig()
    geometry = EvalGeometry(preprocessing)
    if options.store != "off":
        try:
            cache = choose_cache_folder(options.store)
            store = Store(cache, root, geometry, preprocessing.input_size[0])
            stored = store.open(list(samples))
        except StoreUnavailable:
            pass
        else:
            size = options.batch_size or choose_eval_batch_size(
                config, preprocessing, stored_for=machine.device
            )
            return StoredBatches(
                stored,
                targets,
                preprocessing=preprocessing,
                sampler=EvalSampler(len(samples), size),
                device=machine.device,
                channels_last=machine.channels_last,
            )
    size = options.batch_size or choose_eval_batch_size(config, preprocessing)
    workers = options.workers
    if workers is None:
        batch_bytes = size * math.prod(preprocessing.input_size)
        workers = choose_workers("auto", device=machine.device, batch_bytes=batch_bytes)
    return LoadedBatches(
        DecodedImages(
            [root / sample.path for sample in samples],
            geometry,
            # Images of `mnft predict` have no recorded content.
            [sample.sha256 for sample in samples] if all(s.sha256 for s in samples) else None,
        ),
        targets,
        preprocessing=preprocessing,
        sampler=EvalSampler(len(samples), size),
        options=LoaderOptions(machine.device, workers, machine.channels_last),
        allow_bad=options.allow_bad,
    )
