"""From config and manifest to the parts of a training, ready for `fit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mnft.config.schema import Config
from mnft.data.loaders import Batches, EpochSampler, EvalSampler, LoaderOptions, choose_workers
from mnft.data.manifest import Manifest, Sample
from mnft.data.transforms import build_eval_transform, build_mix, build_train_transform
from mnft.engine.device import resolve_precision, seed_everything
from mnft.engine.distributed import Ranks, synchronize_batchnorm
from mnft.engine.fit import FitOptions
from mnft.engine.loop import LoopOptions
from mnft.engine.optim import Criterion, Schedule, build_optimizer, compute_balanced_weights
from mnft.engine.state import TrainState
from mnft.errors import ConfigError, DataError
from mnft.model.bundle import ModelCard
from mnft.model.factory import BuiltModel, build_model
from mnft.model.freeze import freeze
from mnft.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Training:
    """All that `fit` takes, and what the run folder records.

    Attributes:
        state: what changes.
        forward: the model, or its distributed wrapper.
        train: training batches.
        val: batches of the val split.
        criterion: the loss.
        options: what stays the same.
        card: for the saved model folders.
        facts: what was decided, in words, for people and the log.
    """

    state: TrainState
    forward: nn.Module
    train: Batches
    val: Batches
    criterion: Criterion
    options: FitOptions
    card: ModelCard
    facts: Mapping[str, Any]


def build_training(
    config: Config, manifest: Manifest, *, device: torch.device, ranks: Ranks
) -> Training:
    """Build the parts of a training.

    Raises:
        MnftError: no val images, fewer than two images of a batch for each process, or a part that
            the config asks for cannot be built.
    """
    if get_batch_size(config) < 2 * ranks.world_size and ranks.world_size > 1:
        raise ConfigError(
            f"found {config.train.batch_size}, expected at least two images for each of "
            f"{ranks.world_size} processes",
            key="train.batch_size",
        )
    if not manifest.split("val"):
        raise DataError(f"{manifest.root}: no images in the val split")
    seed_everything(config.train.seed)
    num_classes = len(manifest.class_names)
    dtype = resolve_precision(config.train.precision, device, key="train.precision")
    eval_dtype = resolve_precision(config.eval.precision, device, key="eval.precision")
    built = build_model(
        config.model,
        num_classes=num_classes,
        class_names=manifest.class_names,
        img_size=config.data.img_size,
        overrides=config.data.model_dump(include={"mean", "std", "interpolation", "crop_pct"}),
    )
    frozen = freeze(built.model, config.model.freeze)
    model = _to_device(built.model, device, config.train.channels_last, ranks)
    train, val = _build_batches(config, manifest, built.preprocessing, device, ranks)
    optimizer = build_optimizer(model, config.optim)
    schedule = Schedule(
        optimizer,
        config.schedule,
        epochs=config.train.epochs,
        updates_per_epoch=len(train),
        mode="min" if config.eval.monitor == "loss" else "max",
    )
    decay = config.train.ema_decay
    state = TrainState(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        ema=None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=True),
    )
    parameters = list(model.parameters())
    facts = {
        "device": str(device),
        "processes": ranks.world_size,
        "precision": str(dtype).removeprefix("torch."),
        "weights": built.weights,
        "parameters": sum(p.numel() for p in parameters),
        "learning": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen_tensors": len(frozen),
        "input_size": list(built.preprocessing.input_size),
        "updates_per_epoch": len(train),
    }
    return Training(
        state=state,
        forward=_distribute(model, device, ranks),
        train=train,
        val=val,
        criterion=_build_criterion(config, manifest, device),
        options=_fit_options(config, num_classes, device, dtype, eval_dtype, ranks),
        card=_card(built, manifest),
        facts=facts,
    )


def build_eval_batches(
    root: Path,
    samples: list[Sample],
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    options: LoaderOptions,
    ranks: Ranks,
) -> Batches:
    """Evaluation batches of samples whose classes are matched by name."""
    labels = {name: label for label, name in enumerate(class_names)}
    return Batches(
        [root / sample.path for sample in samples],
        [labels[sample.class_name] for sample in samples],
        transform=build_eval_transform(preprocessing),
        preprocessing=preprocessing,
        sampler=EvalSampler(len(samples), batch_size, rank=ranks.rank, world_size=ranks.world_size),
        options=options,
    )


def get_batch_size(config: Config) -> int:
    """`train.batch_size` once it is a number; `auto` is resolved before a training is built."""
    assert config.train.batch_size != "auto"
    return config.train.batch_size


def _build_batches(
    config: Config,
    manifest: Manifest,
    preprocessing: Preprocessing,
    device: torch.device,
    ranks: Ranks,
) -> tuple[Batches, Batches]:
    batch_size = max(get_batch_size(config) // ranks.world_size, config.eval.batch_size)
    workers = choose_workers(
        config.data.workers,
        device=device,
        batch_bytes=batch_size * math.prod(preprocessing.input_size),
        processes=ranks.world_size,
    )
    options = LoaderOptions(device, workers, config.train.channels_last)
    samples = manifest.split("train")
    labels = _labels(samples, manifest.class_names)
    weights = None
    if config.train.sampler == "balanced":
        per_class = compute_balanced_weights(labels, len(manifest.class_names))
        weights = [per_class[label] for label in labels]
    train = Batches(
        [manifest.root / sample.path for sample in samples],
        labels,
        transform=build_train_transform(config.augment, preprocessing),
        preprocessing=preprocessing,
        sampler=EpochSampler(
            len(samples),
            get_batch_size(config),
            seed=config.train.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            weights=weights,
        ),
        options=options,
        mix=build_mix(config.augment, len(manifest.class_names)),
    )
    val = build_eval_batches(
        manifest.root,
        manifest.split("val"),
        manifest.class_names,
        preprocessing,
        batch_size=config.eval.batch_size,
        options=options,
        ranks=ranks,
    )
    return train, val


def _labels(samples: list[Sample], class_names: tuple[str, ...]) -> list[int]:
    labels = {name: label for label, name in enumerate(class_names)}
    return [labels[sample.class_name] for sample in samples]


def _to_device(
    model: nn.Module, device: torch.device, channels_last: bool, ranks: Ranks
) -> nn.Module:
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return synchronize_batchnorm(model) if ranks.world_size > 1 else model


def _distribute(model: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _build_criterion(config: Config, manifest: Manifest, device: torch.device) -> Criterion:
    weights = None
    if config.train.class_weights == "balanced":
        labels = _labels(manifest.split("train"), manifest.class_names)
        per_class = compute_balanced_weights(labels, len(manifest.class_names))
        weights = torch.tensor(per_class, device=device)
    return Criterion(config.train.label_smoothing, weights)


def _fit_options(
    config: Config,
    num_classes: int,
    device: torch.device,
    dtype: torch.dtype,
    eval_dtype: torch.dtype,
    ranks: Ranks,
) -> FitOptions:
    return FitOptions(
        epochs=config.train.epochs,
        monitor=config.eval.monitor,
        early_stopping=config.train.early_stopping,
        seed=config.train.seed,
        num_classes=num_classes,
        eval_dtype=eval_dtype,
        loop=LoopOptions(
            device=device,
            dtype=dtype,
            accumulation_steps=config.train.accumulation_steps,
            clip_grad=config.train.clip_grad,
            ranks=ranks,
        ),
    )


def _card(built: BuiltModel, manifest: Manifest) -> ModelCard:
    return ModelCard(
        architecture=built.architecture,
        model_args=built.model_args,
        preprocessing=built.preprocessing,
        class_names=manifest.class_names,
        pretrained_cfg=built.pretrained_cfg,
    )
