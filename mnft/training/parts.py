"""Into how many parts a batch is cut on the CPU, so that a run stays within a few gigabytes."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.config.recipe import Choice
from mnft.config.schema import Config
from mnft.device.cpu.activations import save_memory_of_relu6
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import resolve_precision
from mnft.errors import ModelError
from mnft.model.factory import BuiltModel
from mnft.model.freeze import freeze, set_training_mode
from mnft.training.inputs import get_batch_size

# What a part of a batch may keep for the backward pass on the CPU. Cutting costs speed, 1 to 4%
# where it was measured, so it begins only where a whole run would take about 6 GB.
_KEPT_BYTES = 3e9
# Batches of fewer pixels, as of 16 images of 224 pixels, are never cut: nothing need be measured.
_MANY_PIXELS = 16 * 224 * 224


def resolve_parts(
    config: Config, built: BuiltModel, device: torch.device, ranks: Ranks
) -> tuple[Config, list[Choice]]:
    """The config with a number in `train.accumulation_steps`, and what was chosen.

    Every process comes to the same number, as nothing is measured but the model.

    Args:
        config: whose batch size is a number.
        built: the model, on the CPU; a copy of it is tried.
        device: where it will train.
        ranks: the processes that share each batch.
    """
    if config.train.accumulation_steps != "auto":
        return config, []
    images = math.ceil(get_batch_size(config) / ranks.world_size)
    _, height, width = built.preprocessing.input_size
    steps = 1
    if device.type == "cpu" and images * height * width >= _MANY_PIXELS:
        trial = copy.deepcopy(built.model)
        freeze(trial, config.model.freeze)
        save_memory_of_relu6(trial)
        side = max(height, width)
        dtype = resolve_precision(
            config.train.precision, device, key="train.precision", img_size=side
        )
        kept = count_kept_bytes(trial, built.preprocessing.input_size)
        set_training_mode(trial, freeze_batchnorm=config.model.freeze_batchnorm)
        steps = choose_parts(trial, images, kept * dtype.itemsize / 4, device)
    values = config.model_dump()
    values["train"]["accumulation_steps"] = steps
    why = "a whole batch would keep more than 3 GB for the backward pass"
    chosen = [Choice("train.accumulation_steps", steps, why)] if steps > 1 else []
    return Config.model_validate(values), chosen


def get_parts(config: Config) -> int:
    """`train.accumulation_steps` once it is a number."""
    assert config.train.accumulation_steps != "auto"
    return config.train.accumulation_steps


def count_kept_bytes(model: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Bytes in fp32 that autograd keeps of one image until the backward pass.

    The model is left in training mode, and its BatchNorm layers have seen two black images.

    Args:
        model: on the CPU.
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
            alive.append(tensor)  # a freed one would give its place to the next
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
    """Parts to cut a batch into: on the CPU as many as keep 3 GB or less each.

    A fixed limit, not the memory that is free: so a config gives the same updates on every machine.

    Args:
        model: in the mode that it trains in. BatchNorm that learns from the batch would learn from
            the parts instead, so such a model's batches stay whole.
        images: of the batch, in one process.
        bytes_per_image: that autograd keeps.
        device: where the model trains.
    """
    if device.type != "cpu" or any(
        isinstance(module, _BatchNorm) and module.training for module in model.modules()
    ):
        return 1
    fitting = max(1, int(_KEPT_BYTES / bytes_per_image)) if bytes_per_image else images
    return max(1, math.ceil(images / fitting))
