"""What a run will need on disk and in memory, against what there is; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from mnft.device.cpu.activations import save_memory_of_relu6
from mnft.device.machine import Machine
from mnft.device.select import resolve_device, resolve_precision
from mnft.errors import ConfigError
from mnft.host import _read_available, _read_limit
from mnft.model.freeze import freeze, set_training_mode
from mnft.model.linear_head import find_linear_head
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.text import count
from mnft.training.batch_size import choose_parts, count_kept_bytes
from mnft.training.inference import choose_eval_batch_size
from mnft.training.inputs import choose_loader_options
from mnft.training.optim import build_optimizer

_SHARED = Path("/dev/shm")
# States that are on the disk while one is saved: the new one and three before it.
_STATES = 4
# Model folders: best, last, and the one that is being written.
_FOLDERS = 3


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a run takes.

    Attributes:
        what: in words.
        needed: bytes.
        free: bytes that there are; None where it is not known.
        where: a folder or device.
    """

    what: str
    needed: int
    free: int | None
    where: str

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as it is known."""
        return self.free is None or self.needed <= self.free


@dataclass(frozen=True, slots=True)
class Plan:
    """The model of a config with random weights, which says how large it is.

    Attributes:
        model: with a head of as many outputs as there are classes.
        preprocessing: of its input.
    """

    model: nn.Module
    preprocessing: Preprocessing


def build_plan(config: Config, num_outputs: int) -> Plan:
    """Build the model without its weights.

    Raises:
        MnftError: it cannot be built, or not without the network.
    """
    if config.model.name.startswith("hf-hub:"):
        raise ConfigError("a model of the hub, which is not asked", key="model.name")
    values = config.model.model_copy(update={"pretrained": False})
    task = open_task(tuple(map(str, range(num_outputs))))
    built = task.build_model(config.model_copy(update={"model": values}))
    freeze(built.model, config.model.freeze)
    return Plan(built.model, built.preprocessing)


def estimate(
    config: Config, plan: Plan, manifest: Manifest, inspections: Mapping[str, Inspection]
) -> tuple[list[Need], list[Finding]]:
    """What a run of the config takes, and what of it there is too little of.

    Args:
        config: as loaded.
        plan: its model.
        manifest: how the images will be split.
        inspections: of the images, which tell their sizes.
    """
    config, _ = apply_recipe(
        config,
        num_images=len(manifest.split("train")),
        linear_head=find_linear_head(plan.model) is not None,
    )
    store = _estimate_store(config, plan, manifest, inspections)
    folder = _estimate_folder(config, plan)
    needs, findings = [*store, folder], list(_judge_disk(store, folder))
    try:
        device = resolve_device(config.train.device)
    except ConfigError:
        return needs, findings  # the config is for another machine
    stored = store and all(need.fits for need in store)
    if not stored or config.augment.policy != "none":
        shared = _estimate_shared(config, plan, device)
        needs += shared
        findings += [finding for need in shared for finding in _judge_shared(need)]
    memory = _estimate_memory(config, plan, device)
    return [*needs, memory], [*findings, *_judge_memory(memory)]


def in_words(num_bytes: int) -> str:
    """A number of bytes for people: "12 MB"."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _estimate_store(
    config: Config, plan: Plan, manifest: Manifest, inspections: Mapping[str, Inspection]
) -> list[Need]:
    if config.data.store == "off":
        return []
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
            continue  # all there
        except StoreUnavailable:
            sizes = [inspections[sample.path].size for sample in samples.values()]
        for size in sizes:
            whole = split == "val" or size is None
            needed += channels * height * width if whole else train.count_bytes(*size or (0, 0))
    return [Need("decoded images", needed, room, str(cache))]


def _estimate_folder(config: Config, plan: Plan) -> Need:
    weights = _count_bytes(plan.model.state_dict().values())
    state = weights + _count_optimizer_bytes(config, plan)
    if config.train.ema_decay is not None:
        state += weights
    parent = Path(config.run.dir).expanduser()
    return Need(
        "run folder", _FOLDERS * weights + _STATES * state, measure_free(parent), str(parent)
    )


def _estimate_shared(config: Config, plan: Plan, device: torch.device) -> list[Need]:
    if not _SHARED.is_dir():
        return []
    options = choose_loader_options(config, plan.preprocessing, Machine(device))
    assert isinstance(config.train.batch_size, int)
    eval_batch = choose_eval_batch_size(config.eval, plan.preprocessing)
    batch = max(config.train.batch_size, eval_batch)
    size = count_shared_bytes(options.workers, batch * math.prod(plan.preprocessing.input_size))
    what = f"shared memory of {count(options.workers, 'worker')}"
    return [Need(what, size, measure_free(_SHARED), str(_SHARED))]


def _estimate_memory(config: Config, plan: Plan, device: torch.device) -> Need:
    """Weights, gradients, optimizer, average, and what the backward pass keeps of a batch."""
    weights = _count_bytes(plan.model.state_dict().values())
    learning = [p for p in plan.model.parameters() if p.requires_grad]
    fixed = weights + _count_bytes(learning) + _count_optimizer_bytes(config, plan)
    if config.train.ema_decay is not None:
        fixed += weights
    side = max(plan.preprocessing.input_size[1:])
    dtype = resolve_precision(config.train.precision, device, key="train.precision", img_size=side)
    share = dtype.itemsize / torch.float32.itemsize
    assert isinstance(config.train.batch_size, int)
    if device.type == "cpu":
        save_memory_of_relu6(plan.model)
    kept = share * count_kept_bytes(plan.model, plan.preprocessing.input_size)
    steps = config.train.accumulation_steps
    if steps == "auto":
        set_training_mode(plan.model, freeze_batchnorm=config.model.freeze_batchnorm)
        steps = choose_parts(plan.model, config.train.batch_size, kept, device)
    needed = fixed + round(math.ceil(config.train.batch_size / steps) * kept)
    return Need("memory for training, at least", needed, _free_memory(device), str(device))


def _count_bytes(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)  # type: ignore[attr-defined]


def _count_optimizer_bytes(config: Config, plan: Plan) -> int:
    """What the optimizer keeps of each parameter, after a step without gradients."""
    optimizer = build_optimizer(plan.model, config.optim)
    for parameter in plan.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    kept = [t for state in optimizer.state.values() for t in state.values()]
    return _count_bytes([t for t in kept if isinstance(t, Tensor)])


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [*_read_available(), *_read_limit()]
    return min(found) if found and device.type == "cpu" else None


def _judge_disk(store: list[Need], folder: Need) -> Iterator[Finding]:
    for need in store:
        if not need.fits:
            what = f"{_compare(need)}; without it every epoch decodes all images"
            yield Finding("store_space", False, what, ())
    if not folder.fits:
        yield Finding("disk_space", True, _compare(folder), ())


def _judge_shared(need: Need) -> Iterator[Finding]:
    if not need.fits:
        what = f"{_compare(need)}; lower data.workers or train.batch_size"
        yield Finding("shared_memory", True, what, ())


def _judge_memory(need: Need) -> Iterator[Finding]:
    if not need.fits:
        what = f"{_compare(need)}; raise train.accumulation_steps or lower train.batch_size"
        yield Finding("memory", False, what, ())


def _compare(need: Need) -> str:
    free = in_words(max(0, need.free or 0))
    return f"{need.what}: {in_words(need.needed)} in {need.where}, which has {free} for it"
