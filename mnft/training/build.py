"""From config and manifest to the parts of a training, ready for its stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mnft.config.recipe import Choice, apply_recipe
from mnft.config.schema import Config
from mnft.data.manifest import Manifest
from mnft.device.compiling import Compiled, choose_compile
from mnft.device.cpu.activations import save_memory_of_relu6
from mnft.device.cpu.depthwise import speed_up_depthwise
from mnft.device.cpu.threads import Threads, build_step, build_threads
from mnft.device.machine import Machine
from mnft.device.ranks.batchnorm import synchronize_batchnorm
from mnft.device.select import benchmark_cudnn, make_deterministic, seed_everything
from mnft.errors import ConfigError, DataError, ModelError
from mnft.host import name_processor
from mnft.model.bundle import ModelCard
from mnft.model.factory import BuiltModel
from mnft.model.freeze import freeze
from mnft.model.linear_head import has_linear_head
from mnft.model.sources import has_fixed_input
from mnft.reporter import SILENT, Reporter
from mnft.tasks import open_task
from mnft.tasks.base import Task
from mnft.training.batch_size import get_parts, resolve_batch_size
from mnft.training.epoch.average import WeightAverage
from mnft.training.epoch.gradients import LoopOptions
from mnft.training.fit import FitOptions
from mnft.training.inputs import Loaders, list_learned, open_inputs
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.state import TrainState
from mnft.training.teacher import add_teachers
from mnft.training.training import Training


def build_training(
    config: Config,
    manifest: Manifest,
    machine: Machine,
    *,
    reporter: Reporter = SILENT,
    checked: bool = True,
) -> Training:
    """Build the parts of a training; the recipe fills in what the config leaves open.

    Args:
        config: config of the run.
        manifest: the images.
        machine: where to train; its precision and memory format are taken from the config.
        reporter: receives the progress of long work.
        checked: whether the images are known to decode.

    Raises:
        UncheckedImages: `checked` is false, and some images do not decode.
        MnftError: no val images, fewer than two images of a batch for each process, or a part that
            the config asks for cannot be built.
    """
    threads = _set_up(config, machine)  # first: the seeds also decide the weights of a new head
    task = open_task(manifest.labels, config.task, config=config)
    built = task.build_model(config)
    config, choices, machine = _resolve(config, manifest, built, machine)
    freeze(built.model, config.model.freeze)
    model = _place(built.model, machine)
    inputs = open_inputs(
        config, manifest, built.preprocessing, machine, reporter=reporter, checked=checked
    )
    loaders = Loaders(config, manifest, built.preprocessing, inputs, machine, task)
    train, train_view, val = loaders.train(), loaders.view("train"), loaders.view("val")
    criterion, teachers = add_teachers(
        task.build_loss(config.train, manifest.split("train"), machine.device),
        config,
        task,
        student=built.preprocessing,
        views=(train_view, val),
        machine=machine,
        reporter=reporter,
    )
    threads.step = build_step(model, built.preprocessing.input_size, machine)
    updates = config.train.epochs * len(train)
    benchmark_cudnn(machine.device, updates=updates)
    forward, compiled = _build_forward(model, machine, config, updates=updates)
    decided = {
        "compile": compiled,
        "updates_per_epoch": len(train),
        "store": inputs.note,
        "teacher": "; ".join(description for _, description in teachers) or None,
        "teachers_sha256": [content for content, _ in teachers],
    }
    return Training(
        config=config,
        choices=choices,
        state=_build_state(config, task, model, machine, updates_per_epoch=len(train)),
        forward=forward,
        train=train,
        train_view=train_view,
        val=val,
        criterion=criterion,
        options=_build_options(config, machine, task, threads),
        card=_build_card(built, task),
        feature_folder=inputs.folder,
        contents={
            split: [f"{sample.sha256} {sample.label}" for sample in manifest.split(split)]
            for split in ("train", "val")
        },
        facts=_describe_setup(built, model, machine, threads) | decided,
    )


def _describe_setup(
    built: BuiltModel, model: nn.Module, machine: Machine, threads: Threads
) -> dict[str, Any]:
    """The model and the machine in figures, as the terminal and the log show them."""
    parameters = list(model.parameters())
    return {
        "device": str(machine.device),
        "processor": name_processor(),
        "processes": machine.ranks.world_size,
        "precision": str(machine.train_dtype).removeprefix("torch."),
        "weights": built.weights,
        "parameters": sum(p.numel() for p in parameters),
        "learning": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen_tensors": sum(not p.requires_grad for p in parameters),
        "input_size": list(built.preprocessing.input_size),
        "threads": threads.most,
    }


def _build_options(config: Config, machine: Machine, task: Task, threads: Threads) -> FitOptions:
    return FitOptions(
        epochs=config.train.epochs,
        monitor=config.eval.monitor,
        early_stopping=config.train.early_stopping,
        seed=config.train.seed,
        snapshot_minutes=config.run.snapshot_minutes,
        threads=threads,
        loop=LoopOptions(
            machine=machine,
            task=task,
            accumulation_steps=get_parts(config),
            clip_grad=config.train.clip_grad,
            freeze_batchnorm=config.model.freeze_batchnorm,
        ),
    )


def _build_card(built: BuiltModel, task: Task) -> ModelCard:
    return ModelCard(
        architecture=built.architecture,
        model_args=built.model_args,
        preprocessing=built.preprocessing,
        labels=task.labels,
        pretrained_cfg=built.pretrained_cfg,
        pruned=built.pruned,
        task=task.name,
    )


def _set_up(config: Config, machine: Machine) -> Threads:
    """Set what is global to the process: seeds, deterministic operations, threads."""
    threads = build_threads(
        config.train.threads,
        device=machine.device,
        ranks=machine.ranks,
        # Compiled code is made for one number of threads.
        fixed=config.train.deterministic or config.train.compile is True,
    )
    if config.train.deterministic:
        make_deterministic(machine.device)
    seed_everything(config.train.seed)
    return threads


def _resolve(
    config: Config, manifest: Manifest, built: BuiltModel, machine: Machine
) -> tuple[Config, list[Choice], Machine]:
    """Give every key that was left open a value; the recipe needs the model and the images for it.

    Returns:
        The config; what was chosen and why; the machine in the precision of the config.
    """
    linear_head = has_linear_head(built.model, built.preprocessing.input_size)
    wanted = config.train.batch_size
    config, recipe = apply_recipe(
        config, num_images=len(list_learned(config, manifest)), linear_head=linear_head
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
    machine = Machine(
        machine.device, machine.ranks, channels_last=config.train.channels_last
    ).with_precision(
        config.train.precision,
        config.eval.precision,
        img_size=max(built.preprocessing.input_size[1:]),
    )
    config, sizes = resolve_batch_size(config, built, machine, wanted=wanted)
    if not manifest.split("val"):
        raise DataError(f"{manifest.root}: no images in the val split")
    return config, [*recipe, *sizes], machine


def _place(model: nn.Module, machine: Machine) -> nn.Module:
    model = machine.place(model)
    if machine.device.type == "cpu":
        save_memory_of_relu6(model)
        if machine.train_dtype == torch.bfloat16:
            speed_up_depthwise(model)
    return synchronize_batchnorm(model) if machine.ranks.world_size > 1 else model


def _build_state(
    config: Config, task: Task, model: nn.Module, machine: Machine, *, updates_per_epoch: int
) -> TrainState:
    optimizer = build_optimizer(model, config.optim)
    decay = config.train.ema_decay
    average = None if decay is None else WeightAverage(model, decay)
    # The backward of these needs their input, so in place autograd would clone it before they
    # overwrite it: 35 copies a forward pass for MobileNetV2. The average, copied above, only
    # evaluates and keeps them in place. So does the CPU's own ReLU6 (device/cpu/activations), whose
    # backward needs only the output.
    for module in model.modules():
        kind: type[nn.Module] = type(module)
        if kind in {nn.ReLU6, nn.Hardswish, nn.SiLU}:
            setattr(module, "inplace", False)  # noqa: B010 - mypy knows no such attribute
    schedule = Schedule(
        optimizer,
        config.schedule,
        epochs=config.train.epochs,
        updates_per_epoch=updates_per_epoch,
        mode="min" if task.monitors[config.eval.monitor] is min else "max",
    )
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.train_dtype == torch.float16)
    return TrainState(model, optimizer, schedule, scaler, ema=average)


def _build_forward(
    model: nn.Module, machine: Machine, config: Config, *, updates: int
) -> tuple[nn.Module, str]:
    """Wrap the model for several processes and for torch.compile.

    Returns:
        The wrapped model, and whether it is compiled, with the reason.
    """
    ranks = machine.ranks
    compiled, why = choose_compile(
        config.train.compile, machine.device, updates=updates, ranks=ranks
    )
    forward = model
    if ranks.world_size > 1:
        devices = [machine.device] if machine.device.type == "cuda" else None
        wrapper = DistributedDataParallel(model, device_ids=devices)
        # All buffers are BatchNorm's, which change alike in every process, so nothing has to be
        # copied before each pass. It is set as an attribute because the argument is deprecated
        # since torch 2.13, and its successor is not in 2.11.
        wrapper.broadcast_buffers = False
        forward = wrapper
    if compiled:
        forward = Compiled(forward, quiet=not ranks.is_main)
    return forward, f"{'yes' if compiled else 'no'}: {why}"
