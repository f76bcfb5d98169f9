"""Quantization-aware fine-tuning (Jacob et al. 2018, section 3) through torchao, to ONNX.

BatchNorm is folded into the convolutions first, so what is trained is what will run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnft.compress.quantize.int8 import within
from mnft.config.schema import Config
from mnft.data.batches.samplers import EpochSampler
from mnft.device.select import seed_everything
from mnft.errors import ExportError
from mnft.exports.artifact import Artifact
from mnft.exports.graph import build_graph
from mnft.exports.onnx import LARGEST_BATCH, write_onnx
from mnft.exports.quiet import REFUSED, quiet
from mnft.model.bundle import Bundle
from mnft.seeding import derive_seed
from mnft.training.epoch.loop import LoopResult, train_one_epoch
from mnft.training.optim import Schedule, build_optimizer
from mnft.training.state import TrainState
from mnft.training.training import Training

_OPSET = 21  # the first with int8 for all that is needed
_BATCH = 16
OnEpoch = Callable[[int, LoopResult], None]


def adapt_config(config: Config, bundle: Bundle) -> Config:
    """The run's config, for a fine-tuning that begins with the trained model."""
    values = config.model_dump()
    values["recipe"] = "plain"  # the run's config has it written out; what is new here is meant
    values["model"] |= {"name": f"local-dir:{bundle.folder}", "pretrained": True, "freeze": "none"}
    values["train"] |= {
        "epochs": config.quantize.qat_epochs,
        "stages": ["finetune"],
        "precision": "fp32",  # rounding to bf16 would hide that to int8
        "ema_decay": None,
        "compile": False,
        "start_size": 1.0,
        "device": "cpu",  # where the graph is traced, and the file runs
    }
    values["optim"] = {"name": "adamw", "lr": config.quantize.qat_lr, "weight_decay": 0.0}
    values["schedule"] = {"name": "cosine", "warmup_epochs": 0.0}
    # The trained model answers; its training labels it knows by heart, which teaches nothing.
    values["distill"] = {"teacher": str(bundle.folder), "temperature": 2.0, "weight": 1.0}
    return Config.model_validate(values)


def fine_tune(
    training: Training,
    images: np.ndarray[Any, np.dtype[Any]],
    artifact: Artifact,
    path: Path,
    *,
    keep_float: Collection[str] = (),
    on_epoch: OnEpoch = lambda _epoch, _result: None,
) -> int:
    """Train a model whose weights and activations are rounded as int8 will, and write it.

    Args:
        training: of `adapt_config`.
        images: (N, C, H, W) float32, normalised, for the first ranges.
        artifact: what the file takes and gives.
        path: of the ONNX file.
        keep_float: layers, or what they lie in, that stay in float.
        on_epoch: called with each epoch, from 1, and what came of it.

    Returns:
        How many tensors are rounded.

    Raises:
        ExportError: torchao cannot take this model, or quantizes nothing of it.
        TrainError: the loss is not finite.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph, example = build_graph(training.state.model, training.card.preprocessing, embed=False)
    try:
        with quiet():
            prepared = _prepare(graph, example, keep_float)
    except REFUSED as error:
        raise _refusal(error) from error
    observers = _find_observers(prepared)
    if not observers:  # seen with other versions of torch: nothing is quantized, without a word
        raise ExportError("torchao quantized nothing of this model")
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            prepared(torch.from_numpy(images[start : start + _BATCH]))
    _train(training, prepared, observers, on_epoch)
    try:
        with quiet():
            write_onnx(convert_pt2e(prepared), example, artifact, path, opset=_OPSET)
    except REFUSED as error:
        raise _refusal(error) from error
    return len(observers)


class _Trainable(nn.Module):
    """An exported graph, which has no training mode and refuses to be asked for it."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, K) logits."""
        # Memory format: the graph was traced with contiguous tensors.
        logits: Tensor = self.graph(images.contiguous())
        return logits

    def train(self, mode: bool = True) -> _Trainable:
        """Note it, for this module alone."""
        self.training = mode
        return self


def _prepare(graph: nn.Module, example: Tensor, keep_float: Collection[str]) -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config(is_qat=True)
    )
    for name, module in graph.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and within(name, keep_float):
            quantizer.set_module_name_qconfig(name, None)
    # Without strict, torchao finds no pattern and quantizes nothing.
    exported = torch.export.export(graph, (example,), dynamic_shapes=({0: batch},), strict=True)
    # Not prepare_qat_pt2e, which would go on training BatchNorm.
    prepared = prepare_pt2e(exported.module(), quantizer)
    for parameter in prepared.parameters():
        parameter.requires_grad_(True)
    return prepared


def _find_observers(prepared: nn.Module) -> list[Any]:
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

    return [module for module in prepared.modules() if isinstance(module, FakeQuantizeBase)]


def _train(
    training: Training, prepared: nn.Module, observers: list[Any], on_epoch: OnEpoch
) -> None:
    model = _Trainable(prepared)
    config, options = training.config, training.options
    optimizer = build_optimizer(model, config.optim)
    state = TrainState(
        model=model,
        optimizer=optimizer,
        schedule=Schedule(
            optimizer,
            config.schedule,
            epochs=config.train.epochs,
            updates_per_epoch=len(training.train),
            mode="max",
        ),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    assert isinstance(training.train.sampler, EpochSampler)
    for epoch in range(1, config.train.epochs + 1):
        if epoch > 1:
            for observer in observers:
                observer.disable_observer()  # ranges that hold still, for the last passes
        training.train.sampler.set_epoch(epoch)
        seed_everything(derive_seed(options.seed, epoch, 0))
        loop = replace(
            options.loop, machine=replace(options.loop.machine, train_dtype=torch.float32)
        )
        result = train_one_epoch(
            state,
            model,
            training.train,
            training.criterion,
            loop,
            on_step=lambda _step, _steps, _so_far: None,
        )
        on_epoch(epoch, result)


def _refusal(error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ExportError(
        f"torchao cannot quantize this model: {lines[0][:300]}",
        hint="--set quantize.qat=never leaves quantization-aware fine-tuning out",
    )
