"""Estimate what a run takes on disk and in shared memory, against what is free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mnft.config.recipe import apply_recipe
from mnft.config.schema import Config
from mnft.data.batches.workers import count_shared_bytes
from mnft.data.check.findings import Finding
from mnft.data.decode import Inspection
from mnft.data.manifest import Manifest
from mnft.data.store.cache import choose_cache_folder, measure_free, measure_room
from mnft.data.store.geometry import EvalGeometry, choose_train_geometry
from mnft.data.store.store import Store, StoreUnavailable
from mnft.device.machine import open_machine
from mnft.errors import ConfigError
from mnft.model.freeze import freeze
from mnft.model.linear_head import find_linear_head
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.text import count
from mnft.training.batch_size import get_batch_size
from mnft.training.inference import choose_eval_batch_size
from mnft.training.inputs import choose_loader_options
from mnft.training.optim import build_optimizer

_SHARED = Path("/dev/shm")
# Resume states on the disk while one is saved: the new one and three older ones.
_STATES = 4
# Model folders on the disk while one is saved: best, last and the new one.
_FOLDERS = 3


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a run takes.

    Attributes:
        what: description for people.
        needed: bytes that the run takes.
        free: bytes that are free, or None if that is not known.
        where: folder that they are in.
    """

    what: str
    needed: int
    free: int | None
    where: str

    @property
    def fits(self) -> bool:
        """Whether enough is free, as far as that is known."""
        return self.free is None or self.needed <= self.free


@dataclass(frozen=True, slots=True)
class Plan:
    """The model of a config with random weights, from which sizes can be read.

    Attributes:
        model: model with one output for each class.
        preprocessing: preprocessing of its input.
    """

    model: nn.Module
    preprocessing: Preprocessing


def build_plan(config: Config, num_outputs: int) -> Plan:
    """Build the model without its weights.

    Raises:
        MnftError: the model cannot be built, or only with the network.
    """
    if config.model.name.startswith("hf-hub:"):
        raise ConfigError("a model of the hub, which is not asked", key="model.name")
    values = config.model.model_copy(update={"pretrained": False})
    task = open_task(tuple(map(str, range(num_outputs))), config.task)
    built = task.build_model(config.model_copy(update={"model": values}))
    freeze(built.model, config.model.freeze)
    return Plan(built.model, built.preprocessing)


def estimate(
    config: Config, plan: Plan, manifest: Manifest, inspections: Mapping[str, Inspection]
) -> tuple[list[Need], list[Finding]]:
    """Estimate what a run of the config takes, and find what there is too little of.

    Args:
        config: config as loaded.
        plan: model of the run.
        manifest: split of the images.
        inspections: inspection of each image by path, which tells its size.
    """
    config, _ = apply_recipe(
        config,
        num_images=len(manifest.split("train")),
        linear_head=find_linear_head(plan.model) is not None,
    )
    needs: list[Need] = []
    findings: list[Finding] = []

    def add(need: Need, kind: str, *, is_problem: bool, advice: str = "") -> None:
        needs.append(need)
        if not need.fits:
            free = in_words(max(0, need.free or 0))
            takes = f"{need.what}: {in_words(need.needed)} in {need.where}, which has {free} for it"
            findings.append(Finding(kind, is_problem, takes + advice, ()))

    is_stored = config.data.store != "off"
    if is_stored:
        store = _estimate_store(config, plan, manifest, inspections)
        advice = "; without it every epoch decodes all images"
        add(store, "store_space", is_problem=False, advice=advice)
        is_stored = store.fits

    # What the optimizer keeps of each parameter is there after one step.
    optimizer = build_optimizer(plan.model, config.optim)
    for parameter in plan.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    weights = sum(t.nbytes for t in plan.model.state_dict().values())
    kept = (value for state in optimizer.state.values() for value in state.values())
    state = weights + sum(value.nbytes for value in kept if isinstance(value, Tensor))
    if config.train.ema_decay is not None:
        state += weights
    parent = Path(config.run.dir).expanduser()
    disk = _FOLDERS * weights + _STATES * state
    add(Need("run folder", disk, measure_free(parent), str(parent)), "disk_space", is_problem=True)

    # Loading processes hand batches over in shared memory. Where the store has all images and
    # the device augments them, there are no such processes.
    in_batches = is_stored and config.augment.policy == "none"
    if not _SHARED.is_dir() or (in_batches and not config.augment.device):
        return needs, findings
    try:
        machine = open_machine(config.train.device)
    except ConfigError:  # the config is for another machine
        return needs, findings
    if in_batches and machine.device.type != "cuda":  # threads corrupt images
        return needs, findings
    workers = choose_loader_options(config, plan.preprocessing, machine).workers
    eval_batch = choose_eval_batch_size(config.eval, plan.preprocessing)
    images = max(get_batch_size(config), eval_batch)
    size = count_shared_bytes(workers, images * math.prod(plan.preprocessing.input_size))
    shared = Need(
        f"shared memory of {count(workers, 'worker')}", size, measure_free(_SHARED), str(_SHARED)
    )
    advice = "; lower data.workers or train.batch_size"
    add(shared, "shared_memory", is_problem=True, advice=advice)
    return needs, findings


def in_words(num_bytes: int) -> str:
    """Format a number of bytes: "12.0 MB"."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _estimate_store(
    config: Config, plan: Plan, manifest: Manifest, inspections: Mapping[str, Inspection]
) -> Need:
    """Estimate the disk space of the decoded images that the store does not have yet."""
    cache = choose_cache_folder(config.data.store)
    channels, height, width = plan.preprocessing.input_size
    train = choose_train_geometry(
        plan.preprocessing, (config.augment.scale[0], config.augment.scale[1])
    )
    needed, room = 0, 0
    for geometry, split in ((train, "train"), (EvalGeometry(plan.preprocessing), "val")):
        samples = {s.sha256: s for s in manifest.split(split)}
        store = Store(cache, manifest.root, geometry, channels)
        room = measure_room(cache, store.folder, int(config.data.store_limit_gb * 1e9))
        try:
            store.open(list(samples.values()))
        except StoreUnavailable:
            for sample in samples.values():
                size = inspections[sample.path].size
                whole = split == "val" or size is None
                needed += channels * height * width if whole else train.count_bytes(*size or (0, 0))
    return Need("decoded images", needed, room, str(cache))
