"""All that these scripts take from mnft besides its command line, where modules may move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import acceptance  # noqa: F401 - makes this checkout the mnft that is imported
import torch

from mnft.config.load import load_config
from mnft.config.schema import AugmentConfig
from mnft.data.batches.augment import AugmentParams, sample_params
from mnft.data.batches.batch import Batch, Batches
from mnft.data.batches.resample import DeviceImages, adjust, resample_on_cpu, resample_on_device
from mnft.data.batches.samplers import EpochSampler
from mnft.data.manifest import Manifest
from mnft.device.machine import Machine
from mnft.device.ranks.batchnorm import synchronize_batchnorm
from mnft.device.select import autocast
from mnft.model.freeze import set_training_mode
from mnft.reporter import SILENT
from mnft.runs.begin import begin_training
from mnft.tasks.outputs import Outputs
from mnft.training.epoch.loop import LoopResult, train_one_epoch
from mnft.training.inference import compute_outputs
from mnft.training.inputs import Loaders, open_inputs
from mnft.training.stages import train_head
from mnft.training.training import Training

__all__ = [
    "AugmentConfig",
    "AugmentParams",
    "Batch",
    "Batches",
    "DeviceImages",
    "EpochSampler",
    "Loaders",
    "LoopResult",
    "Machine",
    "Manifest",
    "Outputs",
    "Training",
    "adjust",
    "autocast",
    "build",
    "compute_outputs",
    "find_device",
    "load_config",
    "open_inputs",
    "resample_on_cpu",
    "resample_on_device",
    "sample_params",
    "set_training_mode",
    "synchronize_batchnorm",
    "train_head",
    "train_one_epoch",
]

# What phases.py measures: module, function or method in it, and what that is in words.
PHASES = [
    ("mnft.runs.begin", "open_machine", "find the device"),
    ("mnft.runs.begin", "_find_manifest", "hash the files"),
    ("mnft.tasks.classify.task", "build_model", "build the model"),
    ("mnft.training.build", "_place", "model to the device (makes the CUDA context)"),
    ("mnft.training.inputs", "_build", "the store: decode and write, or check"),
    ("mnft.data.batches.resample", "DeviceImages.__init__", "images to the device"),
    ("mnft.training.build", "_build_state", "optimizer and average"),
    ("mnft.training.stages", "compute_features", "features for the head"),
    ("mnft.tasks.classify.task", "fit_head", "fit the head"),
    ("mnft.training.fit", "train_one_epoch", "epochs of training"),
    ("mnft.training.fit", "evaluate", "evaluations"),
    ("mnft.runs.writer", "RunWriter.save_epoch", "saving"),
]
# What lets cuDNN try its algorithms.
TUNE = ("mnft.training.build", "benchmark_cudnn")


def find_device(name: str) -> torch.device:
    """The device with its number, as tensors on it name it."""
    device = torch.device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def build(config: Path, sets: Sequence[str], device: torch.device) -> tuple[Manifest, Training]:
    """Everything that `mnft train` builds before its first update, with the stages that it has."""
    loaded, _ = load_config(config, sets)
    return begin_training(loaded, None, Machine(device), SILENT)
