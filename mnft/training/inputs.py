"""From config and manifest to batches: from the store, a GPU's memory, or decoded every epoch."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mnft.config.schema import Config
from mnft.data.batches.batch import Batches, LoaderOptions, ProgressiveResize, TrainBatches
from mnft.data.batches.raw import DecodedImages
from mnft.data.batches.resample import DeviceImages
from mnft.data.batches.samplers import EpochSampler, EvalSampler
from mnft.data.batches.stored import StoredBatches, fits_on_device
from mnft.data.batches.workers import LoadedBatches, choose_workers
from mnft.data.manifest import UNLABELLED, Manifest, Sample
from mnft.data.store.cache import choose_cache_folder
from mnft.data.store.geometry import EvalGeometry, TrainGeometry, choose_train_geometry
from mnft.data.store.store import Geometry, Store, StoredImages, StoreUnavailable
from mnft.data.transforms import build_train_transform
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import Ranks, broadcast, gather
from mnft.errors import DataError, MnftError
from mnft.preprocessing import Preprocessing
from mnft.reporter import SILENT, Reporter
from mnft.tasks.base import Task
from mnft.text import count
from mnft.training.batch_size import get_batch_size
from mnft.training.inference import choose_eval_batch_size

_log = logging.getLogger(__name__)


class UncheckedImages(MnftError):
    """Some images do not decode, or no store has decoded them: they must be checked one by one."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the images of a run come from.

    Attributes:
        train: stored training images, those without labels last, on the disk or in a GPU's memory,
            or None where they are decoded in every epoch, into the same pixels.
        val: stored validation images, or None.
        note: how it was done, for people and the log.
        folder: folder of the stored training images, where features can also be kept.
    """

    train: StoredImages | DeviceImages | None
    val: StoredImages | DeviceImages | None
    note: str
    folder: Path | None = None


def open_inputs(
    config: Config,
    manifest: Manifest,
    preprocessing: Preprocessing,
    machine: Machine,
    *,
    reporter: Reporter = SILENT,
    checked: bool = True,
) -> Inputs:
    """Bring the images of the train and val splits into the store; the main process decodes.

    If they fit, they are also copied into the memory of a GPU, except training images that an
    automatic policy or `augment.device` varies one by one. Where the store cannot be used, a
    warning says why, and images are decoded in every epoch: slower, but to the same batches.

    Raises:
        DataError: an image has changed since the manifest was made.
        UncheckedImages: `checked` is false, and some images do not decode or there is no store.
    """
    if config.data.store == "off":
        return Inputs(None, None, "off: every epoch decodes all images")
    cache = choose_cache_folder(config.data.store)
    channels = preprocessing.input_size[0]
    parts: tuple[tuple[Geometry, list[Sample]], ...] = (
        (_train_geometry(config, preprocessing), list_learned(config, manifest)),
        (EvalGeometry(preprocessing), manifest.split("val")),
    )
    stores = [
        (Store(cache, manifest.root, geometry, channels), samples) for geometry, samples in parts
    ]
    limit = int(config.data.store_limit_gb * 1e9)
    try:
        built, note = broadcast(
            machine.ranks, lambda: _build(stores, manifest.root, limit, reporter)
        )
        if not built:
            raise StoreUnavailable(note)
        train, val = _open(stores, machine.ranks)
    except DataError as error:
        if checked:
            raise
        raise UncheckedImages(error.message) from error
    except StoreUnavailable as error:
        if not checked:
            raise UncheckedImages(str(error)) from error
        if machine.ranks.is_main:
            _log.warning(
                "no store, every epoch decodes all images (slower, to the same batches): %s", error
            )
        return Inputs(None, None, f"none: {error}")
    if fits_on_device([train, val], machine.device):
        one_by_one = config.augment.policy != "none" or config.augment.device > 0
        placed = train if one_by_one else DeviceImages(train, machine.device)
        note = f"{note}, in the memory of {machine.device}"
        return Inputs(placed, DeviceImages(val, machine.device), note, train.path.parent)
    return Inputs(train, val, note, train.path.parent)


def list_learned(config: Config, manifest: Manifest) -> list[Sample]:
    """The images that the model learns from: those of train, then those without labels."""
    without = manifest.split(UNLABELLED) if config.distill.images else []
    return manifest.split("train") + without


def _open(
    stores: list[tuple[Store, list[Sample]]], ranks: Ranks
) -> tuple[StoredImages, StoredImages]:
    """Open the stores in all processes or in none: one on another machine may not see them."""
    try:
        opened = [store.open(samples) for store, samples in stores]
        problem = None
    except StoreUnavailable as error:
        problem = str(error)
    for found in gather(ranks, problem):
        if found is not None:
            raise StoreUnavailable(found)
    return opened[0], opened[1]


def _build(
    stores: list[tuple[Store, list[Sample]]], root: Path, limit: int, reporter: Reporter
) -> tuple[bool, str]:
    """Fill the stores.

    Returns:
        Whether they hold all images; what was done, or why they do not.
    """
    started = time.perf_counter()
    added = size = 0
    try:
        for store, samples in stores:
            with reporter.track("decoding images") as on_progress:
                built = store.build(root, samples, limit, on_progress)
            added += built.added
            size += built.size_bytes
    except StoreUnavailable as error:
        return False, str(error)
    where = f"{size / 1e6:,.0f} MB in {stores[0][0].folder.parent}"
    if not added:
        return True, f"all images decoded before, {where}"
    seconds = time.perf_counter() - started
    speed = f"{seconds:.1f} s ({added / seconds:,.0f}/s)"
    return True, f"{count(added, 'image')} decoded in {speed}, {where}"


@dataclass(frozen=True, slots=True)
class Loaders:
    """Builds the batches of a training.

    Attributes:
        config: config of the run.
        manifest: the images of each split.
        preprocessing: preprocessing of the model's input.
        inputs: where the images come from.
        machine: where the batches go.
        task: turns samples into targets.
    """

    config: Config
    manifest: Manifest
    preprocessing: Preprocessing
    inputs: Inputs
    machine: Machine
    task: Task

    def train(self) -> TrainBatches:
        """Build the training batches of this process: shuffled, augmented, mixed."""
        labelled = self.manifest.split("train")
        samples = list_learned(self.config, self.manifest)
        without = len(samples) - len(labelled)
        labels = self.task.encode(labelled) + [self.task.no_label] * without
        weights = self.task.weigh(labelled) if self.config.train.sampler == "balanced" else None
        if weights:  # images without labels stay as frequent as they are
            weights += [sum(weights) / len(weights)] * without
        sampler = EpochSampler(
            len(samples),
            get_batch_size(self.config),
            seed=self.config.train.seed,
            rank=self.machine.ranks.rank,
            world_size=self.machine.ranks.world_size,
            weights=weights,
            passes=self.config.train.passes,
        )
        mix = self.task.build_mix(self.config.augment)
        resize = ProgressiveResize(self.config.train.start_size, self.config.train.epochs)
        # Crops, flips and colours are computed for whole batches; a policy takes single images.
        stored, whole_batches = self.inputs.train, self.config.augment.policy == "none"
        # Images that do not fit into a GPU's memory are augmented by worker processes.
        in_workers = self.machine.device.type == "cuda" and isinstance(stored, StoredImages)
        if stored is not None and whole_batches and not in_workers:
            return StoredBatches(
                stored,
                labels,
                preprocessing=self.preprocessing,
                sampler=sampler,
                device=self.machine.device,
                channels_last=self.machine.channels_last,
                augment=self.config.augment,
                mix=mix,
                resize=resize,
            )
        assert not isinstance(stored, DeviceImages)
        return LoadedBatches(
            _decoded(self.manifest.root, samples, _train_geometry(self.config, self.preprocessing))
            if stored is None
            else stored,
            labels,
            preprocessing=self.preprocessing,
            sampler=sampler,
            options=choose_loader_options(self.config, self.preprocessing, self.machine),
            augment=self.config.augment if whole_batches else None,
            transform=None
            if whole_batches
            else build_train_transform(self.config.augment, self.preprocessing),
            mix=mix,
            resize=resize,
        )

    def view(self, split: Literal["train", "val"]) -> Batches:
        """Build batches of every image of a split once, in order, as evaluation sees it.

        Training images are made of what the store keeps of them, which differs from the pixels of
        evaluation by the rounding of one resize.
        """
        samples = self.manifest.split(split)
        stored = self.inputs.train if split == "train" else self.inputs.val
        augment: Literal["centre"] | None = "centre" if split == "train" else None
        if augment and isinstance(stored, DeviceImages) and not self.preprocessing.is_part_of_image:
            stored = stored.stored  # the host squashes images and draws borders
        labels = self.task.encode(samples)
        stored_for = None if stored is None else self.machine.device
        batch_size = choose_eval_batch_size(
            self.config.eval, self.preprocessing, stored_for=stored_for
        )
        ranks = self.machine.ranks
        sampler = EvalSampler(
            len(samples), batch_size, rank=ranks.rank, world_size=ranks.world_size
        )
        if stored is None:
            geometry = (
                _train_geometry(self.config, self.preprocessing)
                if augment
                else EvalGeometry(self.preprocessing)
            )
            return LoadedBatches(
                _decoded(self.manifest.root, samples, geometry),
                labels,
                preprocessing=self.preprocessing,
                sampler=sampler,
                options=choose_loader_options(self.config, self.preprocessing, self.machine),
                augment=augment,
            )
        return StoredBatches(
            stored,
            labels,
            preprocessing=self.preprocessing,
            sampler=sampler,
            device=self.machine.device,
            channels_last=self.machine.channels_last,
            augment=augment,
        )


def _train_geometry(config: Config, preprocessing: Preprocessing) -> TrainGeometry:
    return choose_train_geometry(preprocessing, (config.augment.scale[0], config.augment.scale[1]))


def _decoded(root: Path, samples: list[Sample], geometry: Geometry) -> DecodedImages:
    paths, sums = [root / sample.path for sample in samples], [sample.sha256 for sample in samples]
    return DecodedImages(paths, geometry, sums)


def choose_loader_options(
    config: Config, preprocessing: Preprocessing, machine: Machine
) -> LoaderOptions:
    """Choose how many worker processes decode or augment images one by one."""
    eval_batch_size = choose_eval_batch_size(config.eval, preprocessing)
    batch_size = max(get_batch_size(config) // machine.ranks.world_size, eval_batch_size)
    workers = choose_workers(
        config.data.workers,
        device=machine.device,
        batch_bytes=batch_size * math.prod(preprocessing.input_size),
        processes=machine.ranks.local_world_size,
    )
    return LoaderOptions(machine.device, workers, machine.channels_last)
