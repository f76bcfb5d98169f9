"""Quantization-aware fine-tuning (Jacob et al. 2018, section 3) through torchao, to ONNX.

BatchNorm is folded into the convolutions first, so that what is trained is what will run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnft.compress.quantize.layers import within
from mnft.config.schema import Config
from mnft.device.machine import open_machine
from mnft.device.select import seed_everything
from mnft.errors import CheckpointError, ExportError, foreign
from mnft.evaluation.checkpoint import Checkpoint
from mnft.exports import onnx
from mnft.exports.artifact import Artifact
from mnft.exports.formats import check_installed
from mnft.exports.graph import build_graph
from mnft.exports.quiet import quiet
from mnft.host import find_missing
from mnft.model.bundle import Bundle, load_bundle
from mnft.model.linear_head import divide_outputs
from mnft.reporter import SILENT, Reporter
from mnft.seeding import derive_seed
from mnft.tasks import load_activation
from mnft.training.build import build_training
from mnft.training.epoch.loop import train_one_epoch
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.state import TrainState
from mnft.training.training import Training

_PACKAGES = ("torchao",)
_CANNOT = "torchao cannot quantize this model"
_HINT = "--set quantize.qat=never leaves quantization-aware fine-tuning out"
_OPSET = 21  # the first that has int8 for all operators needed here
_BATCH_SIZE = 16


def suggest_installing(config: Config) -> str:
    """A hint to install torchao if fine-tuning was left out only because it is missing; else ""."""
    if config.quantize.qat == "auto" and find_missing(_PACKAGES):
        return "quantization-aware fine-tuning: pip install 'mnft[qat]'; "
    return ""


def build_finetuner(
    opened: Checkpoint,
    config: Config,
    images: np.ndarray[Any, np.dtype[Any]],
    artifact: Artifact,
    reporter: Reporter,
) -> Callable[[Path], None] | None:
    """Build a function that writes an ONNX file by fine-tuning; None where that is not possible.

    Args:
        opened: the trained model.
        config: the config of its run.
        images: (N, C, H, W) float32, normalised, for the first ranges.
        artifact: what an ONNX file of the model takes and gives.
        reporter: receives progress and epochs.

    Raises:
        ExportError: `quantize.qat` is "always", but torchao is not installed.
        CheckpointError: `quantize.qat` is "always", but the model lies in no run.
    """
    settings, manifest = config.quantize, opened.manifest
    if settings.qat == "always":
        check_installed(_PACKAGES, "qat", "quantization-aware fine-tuning")
        if manifest is None:
            raise CheckpointError(
                f"{opened.bundle.folder} does not lie in a run, so there is nothing to fine-tune "
                "it on",
                hint="name a run, or leave it out: --set quantize.qat=never",
            )
    if settings.qat == "never" or manifest is None or find_missing(_PACKAGES):
        return None

    def write(path: Path) -> None:
        training = build_training(
            adapt_config(config, opened.bundle),
            manifest,
            open_machine("cpu"),
            reporter=reporter,
        )
        trained = load_bundle(opened.bundle.folder)
        fine_tune(
            training,
            images,
            artifact,
            path,
            keep_float=settings.keep_float or (),
            temperature=load_activation(trained.task).read_temperature(trained.settings),
            reporter=reporter,
        )

    return write


def adapt_config(config: Config, bundle: Bundle) -> Config:
    """The run's config, changed for a fine-tuning that starts from the trained model."""
    values = config.model_dump()
    # A run's config holds all that the recipe chose; it must not choose again what is unset here.
    values["recipe"] = "plain"
    values["model"] |= {"name": f"local-dir:{bundle.folder}", "pretrained": True, "freeze": "none"}
    values["train"] |= {
        "epochs": config.quantize.qat_epochs,
        "stages": ["finetune"],
        "precision": "fp32",  # rounding to bf16 would hide the rounding to int8
        "ema_decay": None,
        "compile": False,
        "start_size": 1.0,
        "device": "cpu",  # where the graph is traced, and the file runs
    }
    values["optim"] = {"name": "adamw", "lr": config.quantize.qat_lr, "weight_decay": 0.0}
    values["schedule"] = {"name": "cosine", "warmup_epochs": 0.0}
    # The trained model is the teacher: it fits its training labels so well that they teach nothing.
    values["distill"] = {"teacher": str(bundle.folder), "temperature": 2.0, "weight": 1.0}
    return Config.model_validate(values)


def fine_tune(
    training: Training,
    images: np.ndarray[Any, np.dtype[Any]],
    artifact: Artifact,
    path: Path,
    *,
    keep_float: Collection[str] = (),
    temperature: float = 1.0,
    reporter: Reporter = SILENT,
) -> int:
    """Train a model whose weights and activations are rounded as in int8, and write it.

    Args:
        training: a training built from `adapt_config`.
        images: (N, C, H, W) float32, normalised, for the first ranges.
        artifact: what the file takes and gives.
        path: the ONNX file to write.
        keep_float: layers, or modules that contain layers, that stay in float.
        temperature: what the outputs of the file are divided by, to be calibrated; the teacher and
            the loss are not.
        reporter: receives a note after each epoch.

    Returns:
        The number of tensors that are rounded.

    Raises:
        ExportError: torchao cannot take this model, or quantizes nothing in it.
        TrainError: the loss is not finite.
    """
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    preprocessing, model = training.card.preprocessing, training.state.model
    model = divide_outputs(model, temperature, preprocessing.input_size)
    graph, example = build_graph(model, preprocessing)
    with foreign(_CANNOT, ExportError, hint=_HINT), quiet():
        prepared = _insert_rounding(graph, example, keep_float)
    observers: list[Any] = [m for m in prepared.modules() if isinstance(m, FakeQuantizeBase)]
    if not observers:  # with other versions of torch, torchao was seen to do nothing silently
        raise ExportError("torchao quantized nothing of this model")
    # The observers take their first ranges from calibration images, before any weight changes.
    with torch.no_grad():
        for start in range(0, len(images), _BATCH_SIZE):
            prepared(torch.from_numpy(images[start : start + _BATCH_SIZE]))
    _train_rounded(training, _Trainable(prepared, temperature), observers, reporter)
    with foreign(_CANNOT, ExportError, hint=_HINT), quiet():
        onnx.write(convert_pt2e(prepared), example, artifact, path, opset=_OPSET)
    return len(observers)


def _insert_rounding(graph: nn.Module, example: Tensor, keep_float: Collection[str]) -> Any:
    """The exported graph with a fake quantizer at each tensor that int8 will round."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim("batch", min=1, max=onnx.LARGEST_BATCH)
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config(is_qat=True)
    )
    for name, module in graph.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and within(name, keep_float):
            quantizer.set_module_name_qconfig(name, None)
    # Without strict=True, torchao finds no pattern to quantize.
    exported = torch.export.export(graph, (example,), dynamic_shapes=({0: batch},), strict=True)
    # Not prepare_qat_pt2e, which would continue to train BatchNorm.
    prepared = prepare_pt2e(exported.module(), quantizer)
    for parameter in prepared.parameters():
        parameter.requires_grad_(True)
    return prepared


def _train_rounded(
    training: Training, model: nn.Module, observers: Sequence[Any], reporter: Reporter
) -> None:
    """Train the rounded model by the training loop; its ranges move only in the first epoch."""
    config, options = training.config, training.options
    optimizer = build_optimizer(model, config.optim)
    schedule = Schedule(
        optimizer,
        config.schedule,
        epochs=config.train.epochs,
        updates_per_epoch=len(training.train),
        mode="max",
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model=model, optimizer=optimizer, schedule=schedule, scaler=scaler)
    # The run may train in bf16, which would hide the rounding to int8.
    machine = replace(options.loop.machine, train_dtype=torch.float32)
    loop = replace(options.loop, machine=machine)
    for epoch in range(1, config.train.epochs + 1):
        if epoch > 1:
            # Ranges that move with every batch keep the weights from settling.
            for observer in observers:
                observer.disable_observer()
        training.train.sampler.set_epoch(epoch)
        seed_everything(derive_seed(options.seed, epoch, 0))
        result = train_one_epoch(
            state,
            model,
            training.train,
            training.criterion,
            loop,
            on_step=lambda _step, _steps, _so_far: None,
        )
        figures = "  ".join(f"{name} {value:.4f}" for name, value in result.figures.items())
        reporter.note(
            f"         epoch {epoch}/{config.train.epochs}  {figures}  {result.seconds:.1f} s"
        )


class _Trainable(nn.Module):
    """An exported graph, which has no training mode and raises when asked for it.

    Args:
        graph: images to calibrated outputs.
        temperature: what these were divided by.
    """

    def __init__(self, graph: nn.Module, temperature: float) -> None:
        super().__init__()
        self.graph = graph
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, K) outputs as they were before the division."""
        # The graph was traced with contiguous tensors, and the batches are channels-last.
        outputs: Tensor = self.graph(images.contiguous())
        return outputs * self.temperature

    def train(self, mode: bool = True) -> _Trainable:
        """Keep the mode here only: the graph would raise."""
        self.training = mode
        return self
