"""The outputs of a model on selected images, with progress: what eval, export and compare share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mnft.config.schema import EvalConfig
from mnft.data.batches.batch import Batches, LoaderOptions
from mnft.data.batches.samplers import EvalSampler
from mnft.data.batches.stored import StoredBatches
from mnft.data.batches.workers import choose_workers
from mnft.data.store.cache import choose_cache_folder
from mnft.data.store.geometry import EvalGeometry
from mnft.data.store.store import Store, StoredImages, StoreUnavailable
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import keep_freed_memory, resolve_device, resolve_precision
from mnft.evaluation.images import Selection
from mnft.model.bundle import Bundle
from mnft.reporter import SILENT, Reporter
from mnft.tasks.base import Outputs
from mnft.tasks.classify.targets import label
from mnft.training.inference import choose_eval_batch_size, compute_outputs
from mnft.training.inputs import build_eval_batches


@dataclass(frozen=True, slots=True)
class Means:
    """What to compute with; None takes the run's batch size, and as many workers as suit.

    Attributes:
        device_name: auto, cpu, cuda, cuda:N or mps.
        batch_size: images at once.
        workers: processes that decode.
        store: `data.store` of the config; images that are stored already are not decoded again.
    """

    device_name: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    store: str = "off"


def compute_selected(
    bundle: Bundle,
    images: Selection,
    settings: EvalConfig,
    means: Means,
    reporter: Reporter = SILENT,
    *,
    flip: bool = False,
    what: str = "images",
) -> Outputs:
    """The outputs of a model on selected images, in the precision of `eval.precision`.

    Args:
        bundle: the model.
        images: to judge it on.
        settings: the `eval` section.
        means: what to compute with.
        reporter: told of progress.
        flip: average each image with its mirror image.
        what: is judged, for the progress bar.

    Raises:
        MnftError: a device that is not there, an image that does not decode.
    """
    keep_freed_memory()
    device = resolve_device(means.device_name)
    batches = _build_batches(bundle, images, means, settings, device)
    with reporter.count(f"judging {what}", len(images.samples)) as advance:
        return compute_outputs(
            bundle.model.to(device).to(memory_format=torch.channels_last),
            batches,
            num_classes=len(bundle.class_names),
            device=device,
            dtype=resolve_precision(settings.precision, device, key="eval.precision"),
            flip=flip,
            on_images=advance,
        )


def _build_batches(
    bundle: Bundle, images: Selection, means: Means, settings: EvalConfig, device: torch.device
) -> Batches:
    if (stored := _find_stored(bundle, images, means.store)) is not None:
        batch_size = means.batch_size or choose_eval_batch_size(
            settings, bundle.preprocessing, stored_for=device
        )
        return StoredBatches(
            stored,
            label(images.samples, bundle.class_names),
            preprocessing=bundle.preprocessing,
            sampler=EvalSampler(len(images.samples), batch_size),
            device=device,
            channels_last=True,
        )
    batch_size = means.batch_size or choose_eval_batch_size(settings, bundle.preprocessing)
    batch_bytes = batch_size * math.prod(bundle.preprocessing.input_size)
    chosen = choose_workers(
        "auto" if means.workers is None else means.workers, device=device, batch_bytes=batch_bytes
    )
    return build_eval_batches(
        images.root,
        images.samples,
        bundle.class_names,
        bundle.preprocessing,
        batch_size=batch_size,
        options=LoaderOptions(device, chosen, channels_last=True),
        ranks=Ranks(),
    )


def _find_stored(bundle: Bundle, images: Selection, where: str) -> StoredImages | None:
    """The images in the store, where training has put them all."""
    if where == "off":
        return None
    geometry = EvalGeometry(bundle.preprocessing)
    channels = bundle.preprocessing.input_size[0]
    try:
        store = Store(choose_cache_folder(where), images.root, geometry, channels)
        return store.open(images.samples)
    except StoreUnavailable:
        return None
