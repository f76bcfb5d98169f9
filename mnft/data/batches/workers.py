"""Batches that worker processes make, from image files or from the store."""

from __future__ import annotations

import multiprocessing.queues
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mnft.data.batches.augment import Augment
from mnft.data.batches.batch import (
    FULL_SIZE,
    AnySampler,
    Batch,
    LoaderOptions,
    ProgressiveResize,
    normalize_and_mix,
)
from mnft.data.batches.raw import (
    BatchDataset,
    DecodedImages,
    RawBatch,
    Requests,
    as_it_is,
    size_of,
)
from mnft.data.store.store import StoredImages
from mnft.data.transforms import Transform
from mnft.errors import DataError
from mnft.failures import explain_lost_worker
from mnft.host import count_cores
from mnft.preprocessing import Preprocessing

_PREFETCH = 2


class LoadedBatches(Generic[AnySampler]):
    """An iterable of `Batch`, once for each epoch.

    Without a `transform` the batches are those of `StoredBatches` on the CPU, bit for bit.

    Args:
        images: stored images, or files that are decoded in each epoch.
        targets: the label of each image; -1 where it has none.
        preprocessing: size and normalisation.
        sampler: the order; it gives the keys of each batch.
        options: number of workers, device and memory format.
        augment: how images are varied, as whole batches; None takes them as they are, "centre"
            what evaluation sees of images that are stored whole.
        transform: a function that varies one image, (C, H, W) uint8, instead of `augment`.
        mix: mixup or cutmix, or None.
        resize: progressive resizing.
        allow_bad: whether images that cannot be decoded are given in `Batch.bad`, instead of an
            error.
    """

    def __init__(
        self,
        images: StoredImages | DecodedImages,
        targets: Sequence[int],
        *,
        preprocessing: Preprocessing,
        sampler: AnySampler,
        options: LoaderOptions,
        augment: Augment = None,
        transform: Transform | None = None,
        mix: v2.Transform | None = None,
        resize: ProgressiveResize = FULL_SIZE,
        allow_bad: bool = False,
    ) -> None:
        self.sampler = sampler
        self.in_device_memory = False
        self._resize = resize
        self._preprocessing = preprocessing
        self._options = options
        self._mix = mix
        self._allow_bad = allow_bad
        self._loader: DataLoader[RawBatch] = DataLoader(
            BatchDataset(images, targets, preprocessing, augment, transform),
            batch_sampler=Requests(sampler, preprocessing, resize),  # type: ignore[arg-type]
            num_workers=options.workers,
            collate_fn=as_it_is,
            pin_memory=options.device.type == "cuda",
            persistent_workers=options.workers > 0,
            prefetch_factor=_PREFETCH if options.workers else None,
            worker_init_fn=_die_where_batches_are_lost,
            # Without its own generator the loader would draw from the global one, and the
            # number of workers would change what follows.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        try:
            for raw in self._loader:
                if raw.bad and not self._allow_bad:
                    bad = raw.bad[0][1]
                    raise DataError(
                        f"{bad.path}: {bad.reason}",
                        hint="it was readable when the run began: has the folder changed?",
                    )
                yield self._to_device(raw)
        except (RuntimeError, OSError, EOFError) as error:
            # A worker was killed, or could not hand its images over.
            if (lost := explain_lost_worker(error)) is None:
                raise
            raise lost from error

    def _to_device(self, raw: RawBatch) -> Batch:
        device = self._options.device
        images = raw.images.to(device, non_blocking=True)
        targets = raw.targets.to(device, non_blocking=True)
        if len(images):
            size = size_of(self.sampler, self._preprocessing, self._resize)
            if size != tuple(images.shape[-2:]):  # a transform knows only the full size
                images = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
                images = images.round_().clamp_(0, 255)
            images, targets = normalize_and_mix(
                images,
                targets,
                self._preprocessing,
                mix=self._mix,
                seed=raw.seed,
                channels_last=self._options.channels_last,
            )
        return Batch(images, targets, raw.positions, raw.bad)


def _die_where_batches_are_lost(_worker: int) -> None:
    """End a worker process that cannot hand a batch over.

    Its queue would print the error and drop the batch, and the main process would wait for that
    batch for ever.
    """
    if sys.platform == "win32":
        return

    def end(_error: Exception, _batch: object) -> None:
        os.kill(os.getpid(), signal.SIGBUS)

    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's own handler prints
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore


def choose_workers(
    wanted: int | str, *, device: torch.device, batch_bytes: int, processes: int = 1
) -> int:
    """The number of worker processes for `data.workers`.

    `auto` takes half of the cores, at most four, when the CPU trains, and all except one, at most
    eight, when a GPU does. It takes fewer where shared memory, through which batches travel, is
    small (containers often have 64 MB).

    Args:
        wanted: a number, or "auto".
        device: the device that trains.
        batch_bytes: size of one uint8 batch.
        processes: number of training processes on this machine.

    Raises:
        DataError: a number is wanted, and shared memory cannot hold a single batch.
    """
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free // processes if shared.is_dir() else None
    if isinstance(wanted, int):
        if wanted and free is not None and free < batch_bytes:
            raise DataError(
                f"/dev/shm has {free / 1e6:.1f} MB free, a batch takes {batch_bytes / 1e6:.1f} MB",
                hint="enlarge it (docker run --shm-size=2g), or do without loading "
                "processes (data.workers: 0, or --workers 0)",
                key="data.workers",
            )
        return wanted
    cores = count_cores() // processes
    workers = min(8, max(1, cores - 1)) if device.type == "cuda" else min(4, cores // 2)
    return workers if free is None else min(workers, free // count_shared_bytes(1, batch_bytes))


def count_shared_bytes(workers: int, batch_bytes: int) -> int:
    """Shared memory that workers need: for batches that are being made, ready and in use."""
    return workers * batch_bytes * (_PREFETCH + 2)
