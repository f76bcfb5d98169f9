"""`train.batch_size: auto` and `train.accumulation_steps: auto`: how many images fit at once."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.config.recipe import Choice
from mnft.config.schema import Config
from mnft.device.cpu.activations import save_memory_of_relu6
from mnft.device.machine import Machine
from mnft.device.memory import free_memory
from mnft.device.ranks.distributed import broadcast
from mnft.device.select import autocast, without_cudnn_benchmark
from mnft.errors import ConfigError, ModelError, TrainError
from mnft.failures import is_out_of_memory
from mnft.model.factory import BuiltModel
from mnft.model.freeze import freeze, set_training_mode

_log = logging.getLogger(__name__)
# What a part of a batch may keep for the backward pass on the CPU. Cutting costs speed, 1 to 4%
# where it was measured, so it begins only where a whole run would take about 6 GB.
_KEPT_BYTES = 3e9
# Batches of fewer pixels, as of 16 images of 224 pixels, are never cut: nothing need be measured.
_MANY_PIXELS = 16 * 224 * 224


def resolve_batch_size(
    config: Config, built: BuiltModel, machine: Machine, *, wanted: int | str
) -> tuple[Config, list[Choice]]:
    """Put numbers into `train.batch_size` and `train.accumulation_steps`.

    Every process comes to the same numbers: the size is broadcast, and for the parts nothing is
    measured except the model.

    Args:
        config: the config, with the batch size that suits the data set if `wanted` is "auto".
        built: the model, on the CPU; copies of it are tried.
        machine: where it will train, with its precision.
        wanted: what the user wrote for the batch size.

    Returns:
        The config, and what was chosen.

    Raises:
        ConfigError: fewer than two images of a batch for each process.
    """
    choices = []
    values = config.model_dump()
    if wanted == "auto":
        size = broadcast(machine.ranks, lambda: _fit_batch_size(config, built, machine))
        values["train"]["batch_size"] = size
        choices.append(Choice("train.batch_size", size, "fits the data set and the memory"))
    size, ranks = values["train"]["batch_size"], machine.ranks
    if values["train"]["accumulation_steps"] == "auto":
        steps = _choose_parts_of(built, math.ceil(size / ranks.world_size), config, machine)
        values["train"]["accumulation_steps"] = steps
        if steps > 1:
            why = "a whole batch would keep more than 3 GB for the backward pass"
            choices.append(Choice("train.accumulation_steps", steps, why))
    if size < 2 * ranks.world_size and ranks.world_size > 1:
        raise ConfigError(
            f"found {size}, expected at least two images for each of {ranks.world_size} processes",
            key="train.batch_size",
        )
    return Config.model_validate(values), choices


def get_batch_size(config: Config) -> int:
    """Read `train.batch_size` once it is a number."""
    assert config.train.batch_size != "auto"
    return config.train.batch_size


def get_parts(config: Config) -> int:
    """Read `train.accumulation_steps` once it is a number."""
    assert config.train.accumulation_steps != "auto"
    return config.train.accumulation_steps


def count_kept_bytes(model: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Count the bytes in fp32 that autograd keeps of one image until the backward pass.

    The model is left in training mode, and its BatchNorm layers have seen two black images.

    Args:
        model: a model on the CPU.
        input_size: channels, height, width.

    Raises:
        ModelError: the model does not take images of that size.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed one would give its address to the next
        return tensor

    images = torch.zeros(2, *input_size)
    try:
        with (
            torch.random.fork_rng(devices=[]),  # dropout
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            model.train()(images)
    except (RuntimeError, ValueError, AssertionError) as error:  # an input that it does not take
        raise ModelError(f"the model does not take {tuple(images.shape[1:])}: {error}") from error
    return sum(kept.values()) / len(images)


def choose_parts(
    model: nn.Module, images: int, bytes_per_image: float, device: torch.device
) -> int:
    """Choose into how many parts to cut a batch: on the CPU so many that each keeps 3 GB or less.

    The limit is fixed, not the memory that is free, so a config gives the same updates on every
    machine.

    Args:
        model: a model in the mode that it trains in. BatchNorm that learns from the batch would
            learn from the parts instead, so such a model's batches stay whole.
        images: number of images of the batch, in one process.
        bytes_per_image: bytes that autograd keeps of each image.
        device: where the model trains.
    """
    if device.type != "cpu" or any(
        isinstance(module, _BatchNorm) and module.training for module in model.modules()
    ):
        return 1
    fitting = max(1, int(_KEPT_BYTES / bytes_per_image)) if bytes_per_image else images
    return max(1, math.ceil(images / fitting))


def find_batch_size(step: Callable[[int], None], *, largest: int, smallest: int = 8) -> int:
    """Find the first batch size that fits into memory, of `largest`, half of that, and so on.

    It begins with the largest because that fits in most cases.

    Args:
        step: runs one forward and backward pass of as many random images as it is given.
        largest: size to begin with.
        smallest: size to end with, or `largest` if that is less.

    Raises:
        TrainError: not even the smallest size fits.
    """
    size, smallest = largest, min(smallest, largest)
    while True:
        try:
            step(size)
            fits = True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        free_memory()  # outside `except`, which keeps the attempt's tensors alive
        if fits:
            return size
        _log.info("batches of %d images do not fit into memory", size)
        if size == smallest:
            raise TrainError(
                f"a batch of {size} images does not fit into memory",
                hint="lower data.img_size, choose a smaller model, or set train.batch_size and "
                "train.accumulation_steps",
            )
        size = max(size // 2, smallest)


def _choose_parts_of(built: BuiltModel, images: int, config: Config, machine: Machine) -> int:
    _, height, width = built.preprocessing.input_size
    if machine.device.type != "cpu" or images * height * width < _MANY_PIXELS:
        return 1
    trial = copy.deepcopy(built.model)
    freeze(trial, config.model.freeze)
    save_memory_of_relu6(trial)
    kept = count_kept_bytes(trial, built.preprocessing.input_size)
    set_training_mode(trial, freeze_batchnorm=config.model.freeze_batchnorm)
    return choose_parts(trial, images, kept * machine.train_dtype.itemsize / 4, machine.device)


def _fit_batch_size(config: Config, built: BuiltModel, machine: Machine) -> int:
    """The batch size that suits the data set, or the largest that fits into a GPU's memory."""
    wanted, processes = get_batch_size(config), machine.ranks.world_size
    # On the CPU trying may end the process; too few images for all processes are refused later.
    if machine.device.type == "cpu" or wanted // processes < 2:
        return wanted
    trial = copy.deepcopy(built.model)
    freeze(trial, config.model.freeze)
    trial = machine.place(trial)
    set_training_mode(trial, freeze_batchnorm=config.model.freeze_batchnorm)
    # What a training keeps besides: two averages of Adam's, and that of the weights.
    kept = [torch.empty_like(p) for p in trial.parameters() if p.requires_grad for _ in range(3)]

    def step(batch_size: int) -> None:
        shape = (batch_size, *built.preprocessing.input_size)
        images = torch.zeros(shape, device=machine.device)
        trial.zero_grad()  # also of an attempt that failed half-way
        with autocast(machine.device, machine.train_dtype):
            loss = trial(images.contiguous(memory_format=machine.layout)).float().square().mean()
        loss.backward()

    with without_cudnn_benchmark():
        size = find_batch_size(step, largest=wanted // processes)
    del kept
    return size * processes
