"""All that these scripts take from mnft besides its command line, where modules may move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import acceptance  # noqa: F401 - makes this checkout the mnft that is imported
import torch

from mnft.commands.preparation import prepare
from mnft.config.load import load_config
from mnft.config.schema import AugmentConfig
from mnft.data.batches import Batch, Batches
from mnft.data.draws import Draws, draw
from mnft.data.manifest import Manifest
from mnft.data.resample import DeviceImages, adjust, resample_on_cpu, resample_on_device
from mnft.data.samplers import EpochSampler
from mnft.engine.device import autocast
from mnft.engine.distributed import Ranks, synchronize_batchnorm
from mnft.engine.evaluate import Outputs, compute_outputs
from mnft.engine.inputs import build_train_batches, open_inputs
from mnft.engine.loop import LoopResult, train_one_epoch
from mnft.engine.stages import train_head
from mnft.engine.training import Training
from mnft.model.freeze import set_training_mode

__all__ = [
    "AugmentConfig",
    "Batch",
    "Batches",
    "DeviceImages",
    "Draws",
    "EpochSampler",
    "LoopResult",
    "Manifest",
    "Outputs",
    "Ranks",
    "Training",
    "adjust",
    "autocast",
    "build",
    "build_train_batches",
    "compute_outputs",
    "draw",
    "find_device",
    "load_config",
    "open_inputs",
    "resample_on_cpu",
    "resample_on_device",
    "set_training_mode",
    "synchronize_batchnorm",
    "train_head",
    "train_one_epoch",
]

# What phases.py measures: module, function or method in it, and what that is in words.
PHASES = [
    ("mnft.commands.preparation", "resolve_device", "find the device"),
    ("mnft.commands.preparation", "_bring_manifest", "hash the files"),
    ("mnft.engine.setup", "build_model", "build the model"),
    ("mnft.engine.setup", "_to_device", "model to the device (makes the CUDA context)"),
    ("mnft.engine.inputs", "_build", "the store: decode and write, or check"),
    ("mnft.data.resample", "DeviceImages.__init__", "images to the device"),
    ("mnft.engine.setup", "_build_state", "optimizer and average"),
    ("mnft.engine.stages", "compute_features", "features for the head"),
    ("mnft.engine.stages", "fit_head", "fit the head"),
    ("mnft.engine.fit", "train_one_epoch", "epochs of training"),
    ("mnft.engine.fit", "_evaluate", "evaluations"),
    ("mnft.runs.keeper", "RunKeeper.keep", "saving"),
]
# What lets cuDNN try its algorithms.
TUNE = ("mnft.engine.setup", "tune")


def find_device(name: str) -> torch.device:
    """The device with its number, as tensors on it name it."""
    device = torch.device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def build(config: Path, sets: Sequence[str], device: torch.device) -> tuple[Manifest, Training]:
    """Everything that `mnft train` builds before its first update, with the stages that it has."""
    loaded, _ = load_config(config, sets)
    return prepare(loaded, None, device, Ranks())
