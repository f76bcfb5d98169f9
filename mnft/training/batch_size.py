"""`train.batch_size: auto`: the largest batch that the device's memory holds."""

from __future__ import annotations

import copy

import torch

from mnft.config.schema import Config
from mnft.device.memory import find_batch_size
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import autocast, without_tuning
from mnft.model.factory import BuiltModel
from mnft.model.freeze import freeze, set_training_mode
from mnft.training.inputs import get_batch_size


def fit_batch_size(
    config: Config, built: BuiltModel, device: torch.device, dtype: torch.dtype, ranks: Ranks
) -> int:
    """The batch size that suits the data set, or the largest that fits into a GPU's memory.

    Args:
        config: the run's config, with the batch size that suits the data set.
        built: the model; a copy of it is tried.
        device: where the training runs.
        dtype: arithmetic of the training.
        ranks: the processes that share each batch.
    """
    largest = get_batch_size(config) // ranks.world_size
    # On the CPU trying may end the process; too few images for all processes are refused later.
    if device.type == "cpu" or largest < 2:
        return get_batch_size(config)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    trial = copy.deepcopy(built.model)
    freeze(trial, config.model.freeze)
    trial.to(device).to(memory_format=layout)
    set_training_mode(trial, freeze_batchnorm=config.model.freeze_batchnorm)
    # What a training keeps besides: two averages of Adam's, and that of the weights.
    kept = [torch.empty_like(p) for p in trial.parameters() if p.requires_grad for _ in range(3)]

    def step(batch_size: int) -> None:
        shape = (batch_size, *built.preprocessing.input_size)
        images = torch.zeros(shape, device=device).contiguous(memory_format=layout)
        trial.zero_grad()  # also of an attempt that failed half-way
        with autocast(device, dtype):
            loss = trial(images).float().square().mean()
        loss.backward()

    with without_tuning():
        size = find_batch_size(step, largest=largest)
    del kept
    return size * ranks.world_size
