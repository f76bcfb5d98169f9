"""From config and manifest to the parts of a training, ready for `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnft.config.recipe import Choice, apply_recipe
from mnft.config.schema import Config
from mnft.data.manifest import Manifest
from mnft.device.compiling import Compiled, choose_compile
from mnft.device.cpu.activations import save_memory_of_relu6
from mnft.device.cpu.depthwise import speed_up_depthwise
from mnft.device.cpu.threads import Threads, build_threads
from mnft.device.ranks.batchnorm import synchronize_batchnorm
from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.device.select import (
    make_deterministic,
    resolve_precision,
    seed_everything,
    tune,
)
from mnft.errors import ConfigError, DataError, ModelError
from mnft.host import name_processor
from mnft.model.bundle import ModelCard
from mnft.model.factory import BuiltModel, build_model
from mnft.model.freeze import freeze
from mnft.model.linear_head import has_linear_head
from mnft.model.sources import has_fixed_input
from mnft.reporter import SILENT, Reporter
from mnft.tasks.classify.head import Criterion
from mnft.tasks.classify.targets import compute_balanced_weights, label
from mnft.training.batch_size import fit_batch_size
from mnft.training.distill.build import build_teaching_loss
from mnft.training.epoch.average import WeightAverage
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.fit import FitOptions
from mnft.training.inputs import (
    build_train_batches,
    build_view,
    get_batch_size,
    open_inputs,
)
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.parts import get_parts, resolve_parts
from mnft.training.state import TrainState
from mnft.training.training import Training


def build_training(
    config: Config,
    manifest: Manifest,
    *,
    device: torch.device,
    ranks: Ranks,
    reporter: Reporter = SILENT,
    checked: bool = True,
) -> Training:
    """Build the parts of a training; the recipe fills in what the config leaves open.

    Args:
        config: of the run.
        manifest: the images.
        device: where to train.
        ranks: the processes that train together.
        reporter: told how far long work is.
        checked: whether the images are known to decode.

    Raises:
        UncheckedImages: they are not, and some do not.
        MnftError: no val images, fewer than two images of a batch for each process, or a part that
            the config asks for cannot be built.
    """
    tune(device)
    threads = build_threads(
        config.train.threads,
        device=device,
        ranks=ranks,
        # Compiled code is made for one number of threads.
        fixed=config.train.deterministic or config.train.compile is True,
    )
    if config.train.deterministic:
        make_deterministic(device)
    seed_everything(config.train.seed)
    num_classes = len(manifest.class_names)
    built = build_model(
        config.model,
        num_classes=num_classes,
        class_names=manifest.class_names,
        img_size=config.data.img_size,
        overrides=config.data.model_dump(include={"mean", "std", "interpolation", "crop_pct"}),
    )
    config, choices = _resolve(config, manifest, built, device, ranks)
    if not manifest.split("val"):
        raise DataError(f"{manifest.root}: no images in the val split")
    dtype, eval_dtype = _resolve_precisions(config, built, device)
    freeze(built.model, config.model.freeze)
    model = _to_device(built.model, device, dtype, config.train.channels_last, ranks)
    inputs = open_inputs(
        config,
        manifest,
        built.preprocessing,
        device=device,
        ranks=ranks,
        reporter=reporter,
        checked=checked,
    )
    parts = (config, manifest, built.preprocessing, inputs)
    train = build_train_batches(*parts, device=device, ranks=ranks)
    class_weights = _class_weights(config, manifest, device)
    compiled, why = choose_compile(
        config.train.compile, device, updates=config.train.epochs * len(train), ranks=ranks
    )
    val = build_view(*parts, "val", device=device, ranks=ranks)
    train_view = build_view(*parts, "train", device=device, ranks=ranks)
    criterion, teacher = build_teaching_loss(
        Criterion(config.train.label_smoothing, class_weights),
        config,
        class_names=manifest.class_names,
        student=built.preprocessing,
        views=(train_view, val),
        device=device,
        dtype=dtype,
        ranks=ranks,
        reporter=reporter,
    )
    facts = {
        "device": str(device),
        "processor": name_processor(),
        "threads": threads.most,
        "processes": ranks.world_size,
        "precision": str(dtype).removeprefix("torch."),
        "compile": f"{'yes' if compiled else 'no'}: {why}",
        **_describe_model(built, model),
        "updates_per_epoch": len(train),
        "store": inputs.note,
        "teacher": teacher,
    }
    return Training(
        config=config,
        choices=choices,
        state=_build_state(config, model, len(train), dtype, device),
        forward=_wrap(model, device, ranks, compiled=compiled),
        train=train,
        train_view=train_view,
        val=val,
        criterion=criterion,
        class_weights=class_weights,
        options=_fit_options(config, num_classes, device, dtype, eval_dtype, ranks, threads),
        card=_card(built, manifest),
        feature_folder=inputs.folder,
        contents={split: _contents(manifest, split) for split in ("train", "val")},
        facts=facts,
    )


def _describe_model(built: BuiltModel, model: nn.Module) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "weights": built.weights,
        "parameters": sum(p.numel() for p in parameters),
        "learning": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen_tensors": sum(not p.requires_grad for p in parameters),
        "input_size": list(built.preprocessing.input_size),
    }


def _contents(manifest: Manifest, split: str) -> list[str]:
    return [f"{sample.sha256} {sample.class_name}" for sample in manifest.split(split)]


def _resolve(
    config: Config, manifest: Manifest, built: BuiltModel, device: torch.device, ranks: Ranks
) -> tuple[Config, Sequence[Choice]]:
    """The config with nothing left open, and what the recipe chose."""
    linear_head = has_linear_head(built.model, built.preprocessing.input_size)
    wanted = config.train.batch_size
    config, choices = apply_recipe(
        config,
        num_images=len(manifest.split("train")),
        linear_head=linear_head,
    )
    assert config.train.stages
    if "head" in config.train.stages and not linear_head:
        raise ModelError(
            f"found head, but the outputs of {built.architecture} are not one linear layer on "
            "its features",
            key="train.stages",
        )
    if config.train.start_size < 1 and has_fixed_input(built.architecture):
        raise ConfigError(
            f"found {config.train.start_size:g}, but {built.architecture} takes images of one size "
            "only, expected 1.0",
            key="train.start_size",
        )
    if wanted == "auto":
        dtype, _ = _resolve_precisions(config, built, device)
        size = broadcast(ranks, lambda: fit_batch_size(config, built, device, dtype, ranks))
        values = config.model_dump()
        values["train"]["batch_size"] = size
        config = Config.model_validate(values)
        choices = [*choices, Choice("train.batch_size", size, "fits the data set and the memory")]
    config, cut = resolve_parts(config, built, device, ranks)
    choices = [*choices, *cut]
    if get_batch_size(config) < 2 * ranks.world_size and ranks.world_size > 1:
        raise ConfigError(
            f"found {config.train.batch_size}, expected at least two images for each of "
            f"{ranks.world_size} processes",
            key="train.batch_size",
        )
    return config, choices


def _resolve_precisions(
    config: Config, built: BuiltModel, device: torch.device
) -> tuple[torch.dtype, torch.dtype]:
    side = max(built.preprocessing.input_size[1:])
    return (
        resolve_precision(config.train.precision, device, key="train.precision", img_size=side),
        resolve_precision(config.eval.precision, device, key="eval.precision"),
    )


def _build_state(
    config: Config, model: nn.Module, updates: int, dtype: torch.dtype, device: torch.device
) -> TrainState:
    optimizer = build_optimizer(model, config.optim)
    decay = config.train.ema_decay
    average = None if decay is None else WeightAverage(model, decay)
    # Their backward needs the input, which autograd would clone before they overwrite it: 35 copies
    # a forward pass for MobileNetV2. Not in the average, which only evaluates.
    # The CPU's own ReLU6 (engine.activations) keeps its output instead and stays in place.
    for module in model.modules():
        kind: type[nn.Module] = type(module)
        if kind in {nn.ReLU6, nn.Hardswish, nn.SiLU}:
            setattr(module, "inplace", False)  # noqa: B010 - mypy knows no such attribute
    return TrainState(
        model=model,
        optimizer=optimizer,
        schedule=Schedule(
            optimizer,
            config.schedule,
            epochs=config.train.epochs,
            updates_per_epoch=updates,
            mode="min" if config.eval.monitor == "loss" else "max",
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        ema=average,
    )


def _to_device(
    model: nn.Module, device: torch.device, dtype: torch.dtype, channels_last: bool, ranks: Ranks
) -> nn.Module:
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        save_memory_of_relu6(model)
        if dtype == torch.bfloat16:
            speed_up_depthwise(model)
    return synchronize_batchnorm(model) if ranks.world_size > 1 else model


def _wrap(model: nn.Module, device: torch.device, ranks: Ranks, *, compiled: bool) -> nn.Module:
    forward = model
    if ranks.world_size > 1:
        devices = [device] if device.type == "cuda" else None
        wrapper = DistributedDataParallel(model, device_ids=devices)
        # All buffers are BatchNorm's, which change alike in every process: nothing to copy before
        # each pass. As an argument it is deprecated since torch 2.13, and its successor is not in
        # 2.11.
        wrapper.broadcast_buffers = False
        forward = wrapper
    return Compiled(forward, quiet=not ranks.is_main) if compiled else forward


def _class_weights(config: Config, manifest: Manifest, device: torch.device) -> Tensor | None:
    if config.train.class_weights == "none":
        return None
    labels = label(manifest.split("train"), manifest.class_names)
    per_class = compute_balanced_weights(labels, len(manifest.class_names))
    return torch.tensor(per_class, device=device)


def _fit_options(
    config: Config,
    num_classes: int,
    device: torch.device,
    dtype: torch.dtype,
    eval_dtype: torch.dtype,
    ranks: Ranks,
    threads: Threads,
) -> FitOptions:
    return FitOptions(
        epochs=config.train.epochs,
        monitor=config.eval.monitor,
        early_stopping=config.train.early_stopping,
        seed=config.train.seed,
        num_classes=num_classes,
        eval_dtype=eval_dtype,
        snapshot_minutes=config.run.snapshot_minutes,
        threads=threads,
        loop=LoopOptions(
            device=device,
            dtype=dtype,
            accumulation_steps=get_parts(config),
            clip_grad=config.train.clip_grad,
            ranks=ranks,
            freeze_batchnorm=config.model.freeze_batchnorm,
        ),
    )


def _card(built: BuiltModel, manifest: Manifest) -> ModelCard:
    return ModelCard(
        architecture=built.architecture,
        model_args=built.model_args,
        preprocessing=built.preprocessing,
        class_names=manifest.class_names,
        pretrained_cfg=built.pretrained_cfg,
        pruned=built.pruned,
    )
