"""Heat maps and nearest training images for the pictures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from mnft.config.schema import Config
from mnft.data.batches.batch import Batches
from mnft.data.batches.samplers import EvalSampler
from mnft.data.batches.stored import StoredBatches
from mnft.data.manifest import Sample
from mnft.data.store.cache import choose_cache_folder
from mnft.data.store.geometry import choose_train_geometry
from mnft.data.store.store import Store, StoreUnavailable
from mnft.device.machine import Machine
from mnft.errors import ModelError
from mnft.evaluation.images import every_nth
from mnft.model.bundle import Bundle
from mnft.model.explain import compute_gradcam, measure_blur
from mnft.model.linear_head import has_linear_head
from mnft.report.album import Neighbour
from mnft.reporter import Reporter
from mnft.tasks import load_activation, open_task
from mnft.tasks.outputs import Features
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.head.cache import cached, compute_key
from mnft.training.head.features import compute_features

_BATCH = 32
# Training images among which neighbours are looked for, spread evenly over the labels.
_MAX_POOL = 4000
_NUM_NEIGHBOURS = 2
_FEW = 400  # images that are decoded without further processes
_MAX_BLURRED = 64  # images that the heat maps are tested on


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """Heat maps of images, and what blurring says of them.

    Attributes:
        maps: (h, w) float in [0, 1] for each image and output that was asked for.
        tested: number of images that were blurred.
        marked: how much the probability falls, on average, if the hottest quarter is blurred.
        elsewhere: the same for one of the other quarters.
        problem: why there are none, or "".
    """

    maps: dict[tuple[str, int], NDArray[Any]] = field(default_factory=dict)
    tested: int = 0
    marked: float = 0.0
    elsewhere: float = 0.0
    problem: str = ""


def compute_heat_maps(
    bundle: Bundle,
    root: Path,
    wanted: Sequence[tuple[Sample, int]],
    machine: Machine,
    reporter: Reporter,
) -> HeatMaps:
    """Compute a heat map for each image and output, and test the maps by blurring.

    Args:
        bundle: the model, placed on the machine.
        root: folder of the images.
        wanted: images, and the output that each map is of.
        machine: where to compute.
        reporter: told of progress.
    """
    samples = [sample for sample, _ in wanted]
    outputs = [output for _, output in wanted]
    batches = open_eval_batches(
        root,
        samples,
        [0] * len(samples),
        bundle.preprocessing,
        machine,
        options=EvalOptions(_BATCH, 0, allow_bad=True),
    )
    activate = load_activation(bundle.task).apply
    found: dict[tuple[str, int], NDArray[Any]] = {}
    tested, falls = 0, np.zeros(2)
    try:
        with reporter.count("drawing heat maps", len(samples)) as advance:
            for batch in batches:
                advance(len(batch.positions) + len(batch.bad))
                if not len(batch.images):
                    continue
                images = batch.images.clone()
                chosen = [outputs[position] for position in batch.positions]
                heat = compute_gradcam(bundle.model, images, chosen)
                for position, values in zip(batch.positions, heat.cpu().numpy(), strict=True):
                    found[samples[position].path, outputs[position]] = values
                if tested < _MAX_BLURRED and heat.any():
                    falls += len(images) * np.array(
                        measure_blur(bundle.model, images, heat, chosen, activate)
                    )
                    tested += len(images)
    except ModelError as error:
        return HeatMaps(problem=error.message)
    if not tested:
        return HeatMaps(problem="this model reads no feature maps, so it has no heat maps")
    return HeatMaps(found, tested, *(falls / tested).tolist())


def find_neighbours(
    bundle: Bundle,
    config: Config,
    root: Path,
    samples: Sequence[Sample],
    train: Sequence[Sample],
    machine: Machine,
    reporter: Reporter,
) -> dict[str, list[Neighbour]]:
    """Find the training images whose features are nearest to those of each image, by cosine.

    The features of the training images are kept in the cache of the images, so that the next
    report does not compute them again.

    Args:
        bundle: the model, placed on the machine.
        config: the config of its run.
        root: folder of the images.
        samples: images to find neighbours for.
        train: training images.
        machine: where to compute; `train_dtype` is that of the features.
        reporter: told of progress.

    Returns:
        The neighbours by path, the nearest first; empty where the model has no pooled features.
    """
    has_features = has_linear_head(bundle.model, bundle.preprocessing.input_size)
    if not has_features or not samples:
        return {}
    by_label = sorted(train, key=lambda sample: sample.label)
    pool = [by_label[i] for i in every_nth(len(by_label), _MAX_POOL)]
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    preprocessing, dtype = bundle.preprocessing, machine.train_dtype

    def compute(chosen: Sequence[Sample], batches: Batches) -> Features:
        with reporter.count("looking for neighbours", len(chosen)) as advance:
            return compute_features(bundle.model, batches, machine, dtype=dtype, on_images=advance)

    def open_decoded(chosen: Sequence[Sample]) -> Batches:
        # Starting processes takes longer than decoding a few hundred images.
        workers = 0 if len(chosen) <= _FEW else None
        targets, options = task.encode(chosen), EvalOptions(_BATCH, workers)
        return open_eval_batches(root, chosen, targets, preprocessing, machine, options=options)

    # What the training has kept of its images need not be decoded again.
    folder, batches = None, open_decoded(pool)
    scale = config.augment.scale[0], config.augment.scale[1]
    geometry = choose_train_geometry(preprocessing, scale)
    with suppress(StoreUnavailable):
        cache = choose_cache_folder(config.data.store)
        stored = Store(cache, root, geometry, preprocessing.input_size[0]).open(pool)
        folder = stored.path.parent
        batches = StoredBatches(
            stored,
            task.encode(pool),
            preprocessing=preprocessing,
            sampler=EvalSampler(len(pool), _BATCH),
            device=machine.device,
            channels_last=machine.channels_last,
            augment="centre",
        )
    made_from = ["report", machine.device.type, *(sample.sha256 for sample in pool)]
    features = cached(
        folder,
        lambda: compute_key(bundle.model, preprocessing, dtype, made_from),
        lambda: compute(pool, batches),
        machine.ranks,
    )
    own = compute(samples, open_decoded(samples))
    theirs = F.normalize(features.values.float(), dim=1)
    similarities = F.normalize(own.values.float(), dim=1) @ theirs.T
    values, indices = similarities.sort(dim=1, descending=True, stable=True)
    return {
        sample.path: [
            Neighbour(pool[i].path, pool[i].label, similarity)
            for i, similarity in zip(near, cosines, strict=True)
        ]
        for sample, near, cosines in zip(
            samples,
            indices[:, :_NUM_NEIGHBOURS].tolist(),
            values[:, :_NUM_NEIGHBOURS].tolist(),
            strict=True,
        )
    }
